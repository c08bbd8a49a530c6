"""gRPC: Triton's own service, over grpcio with tritonclient's messages."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from segserve.answers import REVISION_HEADER, read_model_info
from segserve.errors import BadRequestError, GatewayUnreachableError, ProtocolError, SegserveError, grpc_error
from segserve.session import ConfigRequest
from segserve.wire import decode_raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve.endpoint import Endpoint
    from segserve.types import ModelInfo
    from segserve.wire import InferAnswer, InferRequest

OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Retries are the session's, which knows the deadline.
    ("grpc.enable_retries", 0),
)

# grpcio gives its own errors the statuses of servers; only the text tells them apart.
CONNECTION_ERRORS: Final = re.compile(
    r"failed to connect|errors resolving|dns resolution"
    r"|socket closed|connection |recvmsg|sendmsg|broken pipe|goaway|stream removed"
    r"|endpoint clos|transport clos|end of tcp stream|ping timeout|keepalive|tcp ",
    re.IGNORECASE,
)


class SyncTransport:
    """One channel for all threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = _open(grpc, endpoint)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def send(self, request: ConfigRequest | InferRequest, timeout_s: float) -> ModelInfo | InferAnswer:
        """Send it and read the answer."""
        method, message = to_grpc(self._stub, request)
        with typed_errors(self._endpoint, request.model):
            answer = method(message, timeout=timeout_s)
        return from_grpc(request, answer)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncTransport:
    """One channel for all tasks of an event loop, opened at the first request: it binds to the loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel: Any = None

    async def send(self, request: ConfigRequest | InferRequest, timeout_s: float) -> ModelInfo | InferAnswer:
        """Send it and read the answer."""
        if self._channel is None:
            self._channel = _open(grpc.aio, self._endpoint)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        method, message = to_grpc(self._stub, request)
        with typed_errors(self._endpoint, request.model):
            answer = await method(message, timeout=timeout_s)
        return from_grpc(request, answer)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()


def to_grpc(stub: Any, request: ConfigRequest | InferRequest) -> tuple[Any, Any]:
    """Return the stub's method and the message of a request."""
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
    """Return the answer as a value."""
    if isinstance(request, ConfigRequest):
        config = answer.config
        texts = {name: value.string_value for name, value in config.parameters.items()}
        return read_model_info(request.model, [output.name for output in config.output], texts)
    entries = [(output.name, output.datatype, tuple(output.shape)) for output in answer.outputs]
    return decode_raw(entries, answer.raw_output_contents, model=answer.model_name, request_id=answer.id)


_PARAMETER_FIELDS: Final = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


@contextmanager
def typed_errors(endpoint: Endpoint, model: str) -> Iterator[None]:
    """Turn grpcio's errors into the client's."""
    try:
        yield
    except grpc.RpcError as error:
        raise _typed(error, endpoint, model) from error


def _typed(error: Any, endpoint: Endpoint, model: str) -> SegserveError:
    status, text = error.code().name, error.details() or ""
    if status == "UNAVAILABLE" and CONNECTION_ERRORS.match(text):
        return GatewayUnreachableError(f"cannot reach {endpoint.authority}: {text}", model=model)
    if status == "INTERNAL" and text.startswith("Exception deserializing"):
        return ProtocolError(f"an answer that is no message: {text}", model=model)
    return grpc_error(status, text, model=model, revision=_revision(error))


def _revision(error: Any) -> str | None:
    for metadata in (error.initial_metadata(), error.trailing_metadata()):
        for key, value in metadata or ():
            if key == REVISION_HEADER:
                return str(value)
    return None


def _open(library: Any, endpoint: Endpoint) -> Any:
    if endpoint.path:
        raise BadRequestError(f"gRPC has no path before its own, got {endpoint.url!r}")
    options = (*OPTIONS, ("grpc.enable_http_proxy", int(not endpoint.is_loopback)))
    if endpoint.scheme == "https":
        return library.secure_channel(endpoint.authority, grpc.ssl_channel_credentials(), options)
    return library.insecure_channel(endpoint.authority, options)
