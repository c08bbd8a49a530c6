"""Renders the filters that bound what a request may send, whatever it says about its size."""

from __future__ import annotations

from typing import Final

from segserve_operator.adapters.traffic.envoy_extensions import body_buffer, extension, header_matches, unless
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.adapters.traffic.envoy_plain_http import PLAIN_HEADER
from segserve_operator.adapters.traffic.envoy_routes import SERVICE

BUFFER_BYTES: Final = 2**15
"""How much of a connection is read at a time. It bounds what one read can be decompressed to: 1,032 times as much."""
# The most that DEFLATE can do. A lower ratio would not refuse a body: Envoy passes on the part up to it, as the whole.
_RATIO: Final = 1_032
_INFLATE_CHUNK_BYTES: Final = 2**16
_WINDOW_BITS: Final = 15  # the largest window; every encoder's output can be read


def bounded_bodies(max_request_bytes: int, *, streams: bool) -> list[Json]:
    """Return the filters after which a request's body is decompressed, whole, and has at most `max_request_bytes`.

    A body beyond that is answered with 413 at once, and its connection closed. Streams, where they are allowed, have
    no such total.
    """
    return [_decompressed(), _limited(max_request_bytes, streams=streams), _buffered(max_request_bytes)]


def _decompressed() -> Json:
    """Decompress gzip; any other encoding is left, and refused where routes are chosen."""
    library = extension(
        "gzip",
        "extensions.compression.gzip.decompressor.v3.Gzip",
        window_bits=_WINDOW_BITS,
        chunk_size=_INFLATE_CHUNK_BYTES,
        max_inflate_ratio=_RATIO,
    )
    never = {"enabled": {"default_value": False, "runtime_key": "segserve.decompressed_responses"}}
    return extension(
        "envoy.filters.http.decompressor",
        "extensions.filters.http.decompressor.v3.Decompressor",
        decompressor_library=library,
        request_direction_config={
            "advertise_accept_encoding": False,
            "common_config": {"ignore_no_transform_header": True},
        },
        response_direction_config={"common_config": never},
    )


def _limited(max_request_bytes: int, *, streams: bool) -> Json:
    limit = extension(
        "envoy.filters.http.body_size_limit",
        "extensions.filters.http.body_size_limit.v3.BodySizeLimit",
        max_request_bytes=max_request_bytes,
    )
    stream = header_matches(":path", {"exact": f"/{SERVICE}/ModelStreamInfer"})
    return unless(stream, limit) if streams else limit


def _buffered(max_request_bytes: int) -> Json:
    """Hold a body until it is whole; of gRPC each message is held, and images of plain HTTP have a bound of their own.

    A caller who sends slowly, or leaves, then keeps no server waiting, which would count as its revision's fault.
    """
    plain = header_matches(PLAIN_HEADER, {"exact": "1"})
    # By the path, which decides the route, and not by a content type, which any request may have.
    grpc = header_matches(":path", {"prefix": f"/{SERVICE}/"})
    return unless({"or_matcher": {"predicate": [plain, grpc]}}, body_buffer(max_request_bytes))
