"""Renders the gateway's listeners, for HTTP/1.1, h2c and gRPC, with their filters and local replies."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from segserve_builder.errors import BUSY
from segserve_operator.adapters.traffic.envoy_auth import (
    DENIED,
    AuthSettings,
    access_filters,
    authentication_filters,
    refusals,
)
from segserve_operator.adapters.traffic.envoy_extensions import (
    body_buffer,
    details_filter,
    extension,
    grpc_reply,
    header_filter,
    header_matches,
    http_reply,
    listening_address,
    lua_filter,
    status_filter,
    unless,
)
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.adapters.traffic.envoy_mirror import mirror_filters
from segserve_operator.adapters.traffic.envoy_plain_http import (
    PLAIN_HEADER,
    PROBES,
    document_replies,
    head_filters,
    image_filters,
    noting_filters,
    translation_filters,
    translation_replies,
)
from segserve_operator.adapters.traffic.envoy_routes import (
    DETAILS,
    GROUP_HEADER,
    MODEL_HEADER,
    RESTART_METADATA,
    RETRY_AFTER,
    RETRY_AFTER_S,
    RETRY_PUSHBACK,
    ROUTE_HEADER,
    ROUTES_NAME,
    SERVICE,
    affinity_filters,
    limits_filter,
    render_internal_routes,
    retry_headers,
)
from segserve_operator.adapters.traffic.envoy_telemetry import (
    REQUEST_NAMESPACE,
    access_logs,
    left_counters,
    request_ids,
    tracing,
)
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings, render_redirect
from segserve_operator.api.access import Cors
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.api.telemetry import AccessLog, Tracing
from segserve_operator.core.traffic import RESTART_S

STAT_PREFIX: Final = "ingress"
NAME_FIELDS: Final = {
    "ModelInfer": "model_name",
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
}
"""The field that contains the model's name, by gRPC method."""
_ANY_CASE: Final = {"ignore_case": True}
_WINDOW: Final = range(65_535, 2**31)  # the window sizes that HTTP/2 allows
_INVALID_ARGUMENT: Final = 3
_NOT_FOUND: Final = 5
_DEADLINE_EXCEEDED: Final = 4
_RESOURCE_EXHAUSTED: Final = 8
_UNIMPLEMENTED: Final = 12
_UNAVAILABLE: Final = 14
_AFTER_TIMEOUT_S: Final = 5.0
_BODY: Final = "%LOCAL_REPLY_BODY%"
# RE2 has no lookahead: what differs from the word at its first letter, its second, and so on, or is longer.
_SLICE: Final = "slice"
_DIFFERENT: Final = "|".join(f"{_SLICE[:at]}([^{letter}].*)?" for at, letter in enumerate(_SLICE))
_OURS_BUT_THE_SLICE: Final = f"(?i)x-segserve-({_DIFFERENT}|{_SLICE}.+)"

BUFFER_BYTES: Final = 2**15
"""How much of a connection is read at a time. It bounds what one read can be decompressed to: 1,032 times as much."""
# The most that DEFLATE can do. A lower ratio would not refuse a body: Envoy passes on the part up to it, as the whole.
_RATIO: Final = 1_032
_INFLATE_CHUNK_BYTES: Final = 2**16
# By the path, which decides the route, and not by a content type, which any request may have.
_IS_GRPC: Final = header_matches(":path", {"prefix": f"/{SERVICE}/"})
_WINDOW_BITS: Final = 15  # the largest window; every encoder's output can be read


@dataclass(frozen=True, slots=True)
class CallerTimeouts:
    """How long Envoy waits for callers, in seconds.

    For the end of a request's headers, for the end of its body, for its next byte, and for the next request on a
    connection, or the first.
    """

    headers_s: float = 5.0
    body_s: float = 120.0
    pause_s: float = 60.0
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """Settings with which Envoy is started; changing them takes a restart.

    `max_request_bytes` limits the body of a request, as it is decompressed. `workers` is the number of threads that
    handle requests. With `internal_port` there is a second listener, for segserve's own requests, which choose a group
    by the header x-segserve-group regardless of weights; with `internal_socket` it is a Unix socket that only this user
    can open. Before Envoy uses more than `heap_bytes` of memory, the largest requests are reset and new ones rejected
    (503). With `tls` the public listener speaks only TLS. With `access_log` callers' requests are logged, into
    `access_log_file` or to stdout. With `tracing` they have spans. With `metrics_socket` the public listener answers
    `/metrics` from there. With `plain_http` it also takes an image as the body of a request. Web pages of the origins
    in `cors` may call it.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    max_request_bytes: int = 64 * 2**20
    workers: int = 1
    internal_port: int | None = None
    internal_socket: str | None = None
    heap_bytes: int = 2 * 2**30
    tls: TlsSettings | None = None
    auth: AuthSettings | None = None
    affinity: SessionAffinity | None = None
    plain_http: bool = False
    cors: Cors | None = None
    access_log: AccessLog | None = None
    access_log_file: Path | None = None
    metrics_socket: str | None = None
    tracing: Tracing | None = None
    capture: bool = False
    timeouts: CallerTimeouts = field(default_factory=CallerTimeouts)

    @property
    def is_open(self) -> bool:
        """Whether it is the gateway of this machine and takes calls without credentials."""
        return self.metrics_socket is not None and self.auth is None

    def __post_init__(self) -> None:
        if self.max_request_bytes not in _WINDOW:
            allowed = f"{_WINDOW.start} to {_WINDOW.stop - 1}"
            raise ValueError(f"max_request_bytes is {self.max_request_bytes!r}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class _Listener:
    """The differences between listeners. Requests to `internal` ones may choose a group."""

    name: str
    address: Json
    routes: Json
    internal: bool
    limits: Path | None = None


def render_listeners(
    settings: EnvoySettings, routes: Json, *, timeout_s: float, tls: Json | None = None, limits: Path | None = None
) -> list[Json]:
    """Return the listeners.

    `routes` is the source of the public one's routes, `tls` its transport socket, `limits` the file of the models'
    limits; without them it speaks plain text, and takes as much as comes.
    """
    rds = {"rds": {"route_config_name": ROUTES_NAME, "config_source": routes}}
    address = listening_address(settings.host, settings.port)
    public = _Listener(STAT_PREFIX, address, rds, internal=False, limits=limits)
    fixed = {"route_config": render_internal_routes(timeout_s=timeout_s)}
    internal = [_Listener("internal", address, fixed, internal=True) for address in _internal_addresses(settings)]
    rendered = [_render_listener(settings, listener, timeout_s=timeout_s) for listener in (public, *internal)]
    if settings.tls is None or tls is None:
        return rendered
    rendered[0]["filter_chains"][0]["transport_socket"] = tls
    return [*rendered, *render_redirect(settings.tls, settings.host)]


def _internal_addresses(settings: EnvoySettings) -> list[Json]:
    if settings.internal_socket is not None:
        return [{"pipe": {"path": settings.internal_socket, "mode": 0o600}}]
    return [listening_address(settings.host, settings.internal_port)] if settings.internal_port is not None else []


def _render_listener(settings: EnvoySettings, listener: _Listener, *, timeout_s: float) -> Json:
    return {
        "name": listener.name,
        "address": listener.address,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        # Callers that take all connections do not keep segserve from its own requests.
        "ignore_global_conn_limit": listener.internal,
        "filter_chains": [{"filters": [_connection_manager(settings, listener, timeout_s=timeout_s)]}],
    }


def _connection_manager(settings: EnvoySettings, listener: _Listener, *, timeout_s: float) -> Json:
    waits = settings.timeouts
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=listener.name,
        codec_type="AUTO",
        **listener.routes,
        # A path is routed as a proxy in front reads it, so a name cannot lead to another model: `..` is not resolved
        # (404), and escaped slashes are refused (400).
        normalize_path=False,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        **({"generate_request_id": False} if listener.internal else _told(settings)),
        skip_xff_append=True,
        request_headers_timeout=_seconds(waits.headers_s),
        request_timeout=_seconds(waits.body_s),
        # It runs while a server works as well, which the time limit of a request ends.
        stream_idle_timeout=_seconds(max(waits.pause_s, timeout_s + _AFTER_TIMEOUT_S)),
        common_http_protocol_options={"idle_timeout": _seconds(waits.idle_s)},
        # By default nginx speaks HTTP/1.0 to what it is in front of.
        http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "localhost"},
        http2_protocol_options={
            "max_concurrent_streams": 1024,
            # The extraction filter buffers a whole gRPC message, and can buffer no more than this window.
            "initial_stream_window_size": settings.max_request_bytes,
            "initial_connection_window_size": settings.max_request_bytes,
        },
        early_header_mutation_extensions=[_stripped_headers(keep_group=listener.internal)],
        local_reply_config=render_local_replies(
            settings.max_request_bytes,
            internal=listener.internal,
            auth=None if listener.internal else settings.auth,
            plain_http=settings.plain_http and not listener.internal,
        ),
        http_filters=_http_filters(settings, listener),
    )


def _told(settings: EnvoySettings) -> Json:
    """Return what callers and the log get of a request."""
    logs = access_logs(settings.access_log, settings.access_log_file, traced=settings.tracing is not None)
    return {**request_ids(), "access_log": [*logs, left_counters()], **tracing(settings.tracing)}


def _http_filters(settings: EnvoySettings, listener: _Listener) -> list[Json]:
    """Return the HTTP filters in the order in which a request passes them."""
    is_plain = settings.plain_http and not listener.internal
    # The caller, and what it calls.
    open_paths = PROBES if is_plain else ()
    caller = [] if listener.internal else authentication_filters(settings.auth, open_paths=open_paths)
    origins = "\n".join(("", *settings.cors.origins, "")) if settings.cors is not None else ""
    script = lua_filter("pages.lua", NOTED="segserve.pages", ORIGINS=origins, IS_LOCAL=settings.is_open)
    pages = [script] if (origins or settings.is_open) and not listener.internal else []
    called = [*pages, *noting_filters(enabled=is_plain), *caller, *head_filters(enabled=is_plain)]
    sizes = bounded_bodies(settings.max_request_bytes)
    sizes += image_filters(settings.max_request_bytes, enabled=is_plain)
    model = [lua_filter("grpc_messages.lua"), _name_extraction(), lua_filter("route_key.lua", **_route_key(settings))]
    # Whether that caller may call this model, whose route is known by then.
    access = [] if listener.internal else access_filters()
    # How much that caller may send to it.
    limits = [] if listener.limits is None else [limits_filter(listener.limits)]
    translation = translation_filters(settings.max_request_bytes, enabled=is_plain)
    affinity = [] if listener.internal else affinity_filters(settings.affinity)
    checked = [lua_filter("inference_requests.lua"), lua_filter("forwarded.lua")]
    admitted = [*access, *limits, *translation, *affinity, *checked]
    traced = settings.tracing is not None and not listener.internal
    copied = mirror_filters(capture=settings.capture)
    public = [] if listener.internal else [_grpc_statuses(), *copied]
    return [*called, *sizes, *model, *admitted, *public, _router(traced=traced)]


def _route_key(settings: EnvoySettings) -> dict[str, str]:
    is_noted = settings.access_log is not None or settings.tracing is not None
    return {"NOTED": REQUEST_NAMESPACE if is_noted else ""}


def _seconds(value: float) -> str:
    return f"{value:.3f}s"


def _stripped_headers(*, keep_group: bool) -> Json:
    """Remove request headers that only Envoy and segserve may set; a request's label is its caller's."""
    ours = (
        [{"exact": ROUTE_HEADER}, {"exact": MODEL_HEADER}]
        if keep_group
        else [{"safe_regex": {"regex": _OURS_BUT_THE_SLICE}}]
    )
    matches = [{"prefix": "x-envoy-", **_ANY_CASE}, *ours]
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove_on_match": {"key_matcher": match}} for match in matches],
    )


def _name_extraction() -> Json:
    """Extract the model's name from gRPC messages into dynamic metadata."""
    from google.protobuf import descriptor_pb2
    from tritonclient.grpc import service_pb2

    descriptors = descriptor_pb2.FileDescriptorSet()
    for file in (*service_pb2.DESCRIPTOR.dependencies, service_pb2.DESCRIPTOR):
        file.CopyToProto(descriptors.file.add())
    serialized: bytes = descriptors.SerializeToString()
    return extension(
        "envoy.filters.http.grpc_field_extraction",
        "extensions.filters.http.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(serialized).decode()},
        extractions_by_method={
            f"{SERVICE}.{method}": {"request_field_extractions": {field: {}}} for method, field in NAME_FIELDS.items()
        },
    )


def _grpc_statuses() -> Json:
    """Count gRPC statuses by cluster; it needs the route, and so comes after the filter that sets its key."""
    return extension(
        "envoy.filters.http.grpc_stats",
        "extensions.filters.http.grpc_stats.v3.FilterConfig",
        individual_method_stats_allowlist={},  # no statistics by method, only sums of a cluster
    )


def _router(*, traced: bool) -> Json:
    codec = extension("envoy.filters.http.upstream_codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    # Triton traces whatever has a trace context, sampled or not, and Envoy gives one to every request.
    unsampled = [lua_filter("unsampled.lua")] if traced else []
    return extension(
        "envoy.filters.http.router",
        "extensions.filters.http.router.v3.Router",
        suppress_envoy_headers=True,
        # These apply to each attempt, before its outcome is counted or retried.
        upstream_http_filters=[*unsampled, lua_filter("faults.lua", RESTART_S=str(RESTART_S), BUSY=BUSY), codec],
    )


def render_local_replies(
    max_request_bytes: int, *, internal: bool, auth: AuthSettings | None = None, plain_http: bool = False
) -> Json:
    """Return the mapping of Envoy's own responses; the first mapper whose filters all match applies."""
    grpc = header_filter("content-type", {"prefix": "application/grpc"})
    named = {"header_filter": {"header": {"name": MODEL_HEADER, "present_match": True}}}
    # The filter that extracts the name fails so on a message that is larger than its buffer.
    extraction_full = _details("grpc_field_extraction_FAILED_PRECONDITION")
    oversize = {"or_filter": {"filters": [status_filter(413), extraction_full]}}
    unknown = f"unknown model '%REQ({MODEL_HEADER})%'"
    if internal:
        unknown = (
            f"no model '%REQ({MODEL_HEADER})%' in a group '%REQ({GROUP_HEADER})%' ({GROUP_HEADER} names the group)"
        )
    # A model that the caller may not use does not exist for him.
    missing = {"or_filter": {"filters": [status_filter(404), _details(DENIED)]}}
    images = "POST /v1/models/NAME:segment" + ("" if plain_http else ", if the pool has gateway.plainHttp")
    places = f"tensors go to POST /v2/models/NAME/infer, images to {images}"
    limit = f"the request is too large; at most {max_request_bytes} bytes are allowed"
    late = "the request did not arrive in time"
    overflow = _details("upstream_reset_before_response_started{overflow")
    overload = "overloaded: more requests wait than spec.runtime.maxQueueSize allows"
    # No server has answered, the repeated attempt included: one that is started again needs some seconds.
    reset, nobody = _details("upstream_reset_before_response_started"), _details("no_healthy_upstream")
    no_answer = {"or_filter": {"filters": [reset, nobody]}}
    # The server was lost while the body arrived, of which too little is kept to begin anew.
    half_sent = status_filter(507)
    send_again = "the server was lost before the request had arrived; send it again"
    limited = _details(DETAILS)
    limit_reached = f"rate limit: spec.limits of model '%REQ({MODEL_HEADER})%' allows no more requests now"
    escaped_slash = _details("path_normalization_failed")
    no_slash = "bad request: a path must not contain an escaped slash (%%2F or %%5C)"
    return {
        "mappers": [
            *refusals(auth),
            # The answer to a preflight request, which has no body.
            {"filter": status_filter(204), "body_format_override": {"text_format_source": {"inline_string": _BODY}}},
            *document_replies(enabled=plain_http),
            grpc_reply([missing, named, grpc], unknown, _NOT_FOUND) | {"status_code": 404},
            grpc_reply([status_filter(404), grpc], "no such method: %REQ(:PATH)%"),
            grpc_reply([oversize, grpc], limit, _RESOURCE_EXHAUSTED),
            grpc_reply([status_filter(400), grpc], _BODY, _INVALID_ARGUMENT),
            grpc_reply([status_filter(415), grpc], _BODY, _UNIMPLEMENTED),
            grpc_reply([status_filter(408), grpc], late, _DEADLINE_EXCEEDED),
            grpc_reply([status_filter(431), grpc], _BODY, _RESOURCE_EXHAUSTED),
            grpc_reply([status_filter(504), grpc], _BODY, _DEADLINE_EXCEEDED),
            grpc_reply([limited, grpc], limit_reached, headers=retry_headers(RETRY_AFTER_S)),
            grpc_reply([overflow, grpc], overload),
            grpc_reply([no_answer, grpc], _BODY, headers=_when_restarted(RETRY_AFTER, RETRY_PUSHBACK)),
            grpc_reply([half_sent, grpc], send_again, _UNAVAILABLE),
            grpc_reply([grpc], _BODY),
            http_reply([missing, named], unknown) | {"status_code": 404},
            http_reply([status_filter(404)], f"no such path: %REQ(:PATH)%; {places}"),
            *translation_replies(max_request_bytes, enabled=plain_http),
            http_reply([oversize], limit) | {"status_code": 413},
            http_reply([limited], limit_reached),
            http_reply([overflow], overload),
            http_reply([no_answer], _BODY, headers=_when_restarted(RETRY_AFTER)),
            http_reply([half_sent], send_again) | {"status_code": 503},
            http_reply([status_filter(408)], late),
            http_reply([escaped_slash], no_slash),
            http_reply([status_filter(400)], f"bad request: %RESPONSE_CODE_DETAILS% {_BODY}"),
        ],
        "body_format": {"json_format": {"error": _BODY}},
    }


def _when_restarted(*names: str) -> dict[str, str]:
    """Return the headers that the route's metadata says."""
    return {name: f"%METADATA(ROUTE:{RESTART_METADATA}:{name})%" for name in names}


def _details(start: str) -> Json:
    return details_filter(f".startsWith('{start}')")


def bounded_bodies(max_request_bytes: int) -> list[Json]:
    """Return the filters after which a request's body is decompressed, whole, and has at most `max_request_bytes`.

    A body beyond that is answered with 413 at once, and its connection closed.
    """
    limit = extension(
        "envoy.filters.http.body_size_limit",
        "extensions.filters.http.body_size_limit.v3.BodySizeLimit",
        max_request_bytes=max_request_bytes,
    )
    return [_decompressed(), limit, _buffered(max_request_bytes)]


def _decompressed() -> Json:
    """Decompress gzip of HTTP; any other encoding is left, and refused where routes are chosen."""
    library = extension(
        "gzip",
        "extensions.compression.gzip.decompressor.v3.Gzip",
        window_bits=_WINDOW_BITS,
        chunk_size=_INFLATE_CHUNK_BYTES,
        max_inflate_ratio=_RATIO,
    )
    never = {"enabled": {"default_value": False, "runtime_key": "segserve.decompressed_responses"}}
    decompressor = extension(
        "envoy.filters.http.decompressor",
        "extensions.filters.http.decompressor.v3.Decompressor",
        decompressor_library=library,
        request_direction_config={
            "advertise_accept_encoding": False,
            "common_config": {"ignore_no_transform_header": True},
        },
        response_direction_config={"common_config": never},
    )
    return unless(_IS_GRPC, decompressor)


def _buffered(max_request_bytes: int) -> Json:
    """Hold a body until it is whole; of gRPC each message is held, and images of plain HTTP have a bound of their own.

    A caller that sends slowly, or leaves, then keeps no server waiting, which would count as its revision's fault.
    """
    plain = header_matches(PLAIN_HEADER, {"safe_regex": {"google_re2": {}, "regex": ".+"}})
    return unless({"or_matcher": {"predicate": [plain, _IS_GRPC]}}, body_buffer(max_request_bytes))
