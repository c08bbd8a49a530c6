"""The gRPC transport: Triton's inference service, over grpcio with tritonclient's messages."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from segserve.calls.answers import REVISION_HEADER, read_model_info, read_pixel_format
from segserve.calls.credentials import Tls
from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import ConfigRequest, Send
from segserve.errors import ConnectionLostError, GatewayUnreachableError, TlsError, grpc_error
from segserve.results.values import ModelInfo
from segserve.transports.base import (
    Connection,
    answer_too_large,
    check_loop,
    check_open,
    check_process,
    deadline,
    deadline_exceeded,
)
from segserve_common.backoff import retry_after_s
from segserve_common.errors import BadRequestError, ProtocolError, SegserveError
from segserve_common.kserve import InferAnswer, InferRequest, decode_raw

OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    # An answer is bounded by the bytes that arrive, so none may be compressed.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # The session retries: only it has the deadline.
    ("grpc.enable_retries", 0),
    # Use all addresses of a name in turn, and do not look up a service configuration in DNS.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # Reconnect within seconds of the gateway's return; the default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # So long a connection may take: with TLS it is four ways there and back, also on a slow network.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Pings detect a network that vanished without closing connections. Servers allow no more than this by default.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 2),
)

# grpcio reports its own errors with the statuses of servers; only the text distinguishes them.
NOT_CONNECTED: Final = re.compile(
    r"failed to connect|connections to all backends failing|errors resolving|dns resolution|(?:no|empty) address",
    re.IGNORECASE,
)
TIMED_OUT: Final = "Deadline Exceeded"
ANSWER_TOO_LARGE: Final = re.compile(r"CLIENT: Received message larger than max \((\d+) vs\. (\d+)\)")
REFUSED_BY_TLS: Final = re.compile(r"handshake failed|certificate", re.IGNORECASE)
LOST: Final = re.compile(
    r"socket closed|connection |recvmsg|sendmsg|broken pipe|goaway|stream removed"
    r"|endpoint clos|transport clos|end of tcp stream|ping timeout|keepalive|tcp ",
    re.IGNORECASE,
)


class GrpcTransport:
    """One channel for all threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel = _open(grpc, connection)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._process = os.getpid()
        self._closed = False

    def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send the request and read the answer."""
        check_process(self._process)
        check_open(self._closed)
        method, message = to_grpc(self._stub, step.request)
        metadata = {**step.headers, **self._connection.credentials.headers()}
        with typed_errors(self._connection.endpoint, step):
            answer = method(message, timeout=step.timeout_s, metadata=tuple(metadata.items()))
        return from_grpc(step.request, answer)

    def close(self) -> None:
        """Close the channel."""
        self._closed = True
        self._channel.close()


class AsyncGrpcTransport:
    """One channel for all tasks of an event loop, opened at the first request because it binds to the loop."""

    def __init__(self, connection: Connection) -> None:
        _check(connection)
        self._connection = connection
        self._channel: Any = None
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send the request and read the answer."""
        check_process(self._process)
        self._loop = check_loop(self._loop)
        check_open(self._closed)
        if self._channel is None:
            self._channel = _open(grpc.aio, self._connection)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        method, message = to_grpc(self._stub, step.request)
        async with deadline(self._connection.endpoint, step):
            metadata = {**step.headers, **await self._connection.credentials.async_headers()}
            with typed_errors(self._connection.endpoint, step):
                answer = await method(message, timeout=step.timeout_s, metadata=tuple(metadata.items()))
        return from_grpc(step.request, answer)

    async def close(self) -> None:
        """Close the channel."""
        check_loop(self._loop)
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


def to_grpc(stub: Any, request: ConfigRequest | InferRequest) -> tuple[Any, Any]:
    """Return the stub's method and the message for a request."""
    if isinstance(request, ConfigRequest):
        return stub.ModelConfig, service_pb2.ModelConfigRequest(name=request.model)
    message = service_pb2.ModelInferRequest(
        model_name=request.model,
        id=request.id,
        raw_input_contents=[tensor.raw for tensor in request.inputs],
    )
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in request.outputs:
        message.outputs.add(name=name)
    for name, value in request.parameters.items():
        setattr(message.parameters[name], _PARAMETER_FIELDS[type(value)], value)
    return stub.ModelInfer, message


def from_grpc(request: ConfigRequest | InferRequest, answer: Any) -> ModelInfo | InferAnswer:
    """Return the typed answer; raises `ProtocolError` for a malformed one."""
    if isinstance(request, ConfigRequest):
        config = answer.config
        texts = {name: value.string_value for name, value in config.parameters.items()}
        taken = (
            read_pixel_format(model_config_pb2.DataType.Name(each.data_type), each.dims)
            for each in config.input
            if each.name == "PIXELS"
        )
        return read_model_info(request.model, [output.name for output in config.output], texts, next(taken, None))
    entries = [(output.name, output.datatype, tuple(output.shape)) for output in answer.outputs]
    return decode_raw(entries, answer.raw_output_contents, model=answer.model_name, request_id=answer.id)


_PARAMETER_FIELDS: Final = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


@contextmanager
def typed_errors(endpoint: GatewayEndpoint, step: Send) -> Iterator[None]:
    """Translate grpcio's errors to the client's."""
    try:
        yield
    except grpc.RpcError as error:
        raise _typed(error, endpoint, step) from error


def _typed(error: Any, endpoint: GatewayEndpoint, step: Send) -> SegserveError:
    status, text, model = error.code().name, error.details() or "", step.request.model
    if status == "DEADLINE_EXCEEDED" and TIMED_OUT in text:
        return deadline_exceeded(endpoint, step)
    if status == "RESOURCE_EXHAUSTED" and (sizes := ANSWER_TOO_LARGE.search(text)):
        return answer_too_large(endpoint, f"{sizes[1]} bytes", int(sizes[2]))
    if status == "UNAVAILABLE" and NOT_CONNECTED.match(text):
        if REFUSED_BY_TLS.search(text):
            return TlsError(f"TLS handshake with {endpoint.authority} failed: {text}", model=model)
        return GatewayUnreachableError(f"cannot reach {endpoint.url}: {text}", model=model)
    if status == "UNAVAILABLE" and LOST.match(text):
        return ConnectionLostError(f"lost the connection to {endpoint.authority}: {text}", model=model)
    if status == "INTERNAL" and text.startswith("Exception deserializing"):
        return ProtocolError(f"the answer is not a message of Triton's service: {text}", model=model)
    pairs = [*(error.trailing_metadata() or ()), *(error.initial_metadata() or ())]
    metadata = {str(key): str(value) for key, value in pairs}
    return grpc_error(
        status,
        text,
        model=model,
        revision=metadata.get(REVISION_HEADER),
        retry_after_s=retry_after_s(metadata.get("retry-after")),
    )


def _check(connection: Connection) -> None:
    if connection.endpoint.path:
        raise BadRequestError(f"gRPC does not support a path prefix, got {connection.endpoint.url!r}")
    if connection.http2 or connection.gzip:
        raise BadRequestError(
            "http2 and gzip are options of transport http: gRPC always uses HTTP/2, and gateways accept it uncompressed"
        )


def _open(library: Any, connection: Connection) -> Any:
    _check(connection)
    endpoint = connection.endpoint
    target = f"dns:///{endpoint.authority}"
    options = (
        *OPTIONS,
        ("grpc.max_receive_message_length", connection.max_answer_bytes),
        ("grpc.enable_http_proxy", int(not endpoint.is_loopback)),
    )
    if endpoint.scheme == "https":
        return library.secure_channel(target, _tls_credentials(connection.tls or Tls()), options)
    return library.insecure_channel(target, options)


def _tls_credentials(tls: Tls) -> Any:
    files = (tls.ca_file, tls.key_file, tls.certificate_file)
    try:
        return grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file is not None else None for file in files))
    except OSError as error:
        raise BadRequestError(f"{tls!r} cannot be used: {error}") from error
