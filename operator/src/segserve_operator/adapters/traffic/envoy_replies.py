"""Renders Envoy's own responses: JSON over HTTP, a message and a matching status over gRPC."""

from __future__ import annotations

from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES, Json
from segserve_operator.adapters.traffic.envoy_routes import GROUP_HEADER, MODEL_HEADER

_NOT_FOUND: Final = 5
_DEADLINE_EXCEEDED: Final = 4
_RESOURCE_EXHAUSTED: Final = 8
_UNIMPLEMENTED: Final = 12
_BODY: Final = "%LOCAL_REPLY_BODY%"


def render_local_replies(max_request_bytes: int, *, internal: bool) -> Json:
    """Return the mapping of Envoy's own responses; the first mapper whose filters all match applies."""
    grpc = _header("content-type", {"prefix": "application/grpc"})
    compressed = _header("grpc-encoding", {"safe_regex": {"regex": "gzip|deflate"}})
    named = {"header_filter": {"header": {"name": MODEL_HEADER, "present_match": True}}}
    announced = {"header_filter": {"header": too_large(max_request_bytes)}}
    # The filter that extracts the name fails so on a message that is larger than its buffer.
    extraction_full = _details("grpc_field_extraction_FAILED_PRECONDITION")
    oversize = {"or_filter": {"filters": [announced, _status(413), extraction_full]}}
    unknown = f"unknown model '%REQ({MODEL_HEADER})%'"
    if internal:
        unknown = (
            f"no model '%REQ({MODEL_HEADER})%' in a group '%REQ({GROUP_HEADER})%' ({GROUP_HEADER} names the group)"
        )
    limit = f"the request is too large; at most {max_request_bytes} bytes are allowed"
    overflow = _details("upstream_reset_before_response_started{overflow")
    overload = "overloaded: more requests wait than spec.runtime.maxQueueSize allows"
    no_compression = "compressed gRPC messages are not supported: the model's name is read from the message"
    return {
        "mappers": [
            _grpc_reply([_status(404), named, grpc], unknown, _NOT_FOUND),
            _grpc_reply([_status(404), grpc], "no such method: %REQ(:PATH)%"),
            _grpc_reply([oversize, grpc], limit, _RESOURCE_EXHAUSTED),
            _grpc_reply([_status(400), grpc, compressed], no_compression, _UNIMPLEMENTED),
            _grpc_reply([_status(504), grpc], _BODY, _DEADLINE_EXCEEDED),
            _grpc_reply([overflow, grpc], overload),
            _grpc_reply([grpc], _BODY),
            _http_reply([_status(404), named], unknown),
            _http_reply([_status(404)], "no such path: %REQ(:PATH)%"),
            _http_reply([oversize], limit) | {"status_code": 413},
            _http_reply([overflow], overload),
            _http_reply([_status(400)], f"bad request: %RESPONSE_CODE_DETAILS% {_BODY}"),
        ],
        "body_format": {"json_format": {"error": _BODY}},
    }


def too_large(max_request_bytes: int) -> Json:
    """Return the header match of requests with a larger Content-Length."""
    return {"name": "content-length", "range_match": {"start": max_request_bytes + 1, "end": 2**63 - 1}}


def _grpc_reply(filters: list[Json], text: str, status: int | None = None) -> Json:
    reply = {"filter": _all(filters), "body_format_override": {"text_format_source": {"inline_string": text}}}
    if status is None:  # Envoy derives it from the HTTP status
        return reply
    header = {
        "header": {"key": "grpc-status", "value": str(status)},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    return reply | {"headers_to_add": [header]}


def _http_reply(filters: list[Json], error: str) -> Json:
    return {"filter": _all(filters), "body_format_override": {"json_format": {"error": error}}}


def _all(filters: list[Json]) -> Json:
    return {"and_filter": {"filters": filters}} if len(filters) > 1 else filters[0]


def _header(name: str, match: Json) -> Json:
    return {"header_filter": {"header": {"name": name, "string_match": match}}}


def _status(code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"segserve.reply.{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _details(start: str) -> Json:
    expression = {
        "@type": f"{TYPES}.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": f"response.code_details.startsWith('{start}')",
    }
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": expression}}
