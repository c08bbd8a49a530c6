"""A gateway in memory that speaks Triton's protocol on real sockets, HTTP and gRPC, with faults on demand."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from fakes.waiting import HANG_S

Arrays = dict[str, np.ndarray]
DTYPES = {"UINT8": np.uint8, "UINT16": np.uint16, "INT32": np.int32, "FP32": np.float32}


def items(*values: bytes) -> np.ndarray:
    """Return the BYTES tensor of `values` as tritonclient takes it."""
    return np.array(values, dtype=np.object_)


@dataclass
class Asked:
    """One inference request as the server read it."""

    model: str
    inputs: Arrays
    outputs: list[str]
    parameters: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Model:
    """A model's declared outputs, its parameters, the function that answers, and the type of PIXELS (grey, by HTTP)."""

    outputs: list[str]
    parameters: Mapping[str, str]
    answer: Callable[[Asked], Arrays]
    pixels: str | None = None


@dataclass
class Fault:
    """What happens to one inference instead of an answer; the fields that are set apply, in this order.

    Until `hold` is set nothing happens. With `hang_up` there is an answer, after which the connection is closed without
    a word.
    """

    delay_s: float = 0.0
    hold: threading.Event | None = None
    drop: bool = False
    hang_up: bool = False
    truncate_to: int | None = None
    trickle_s: float | None = None
    body: bytes | None = None
    http: int | None = None
    grpc: str | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def wait(self) -> None:
        """Return when the inference may go on."""
        time.sleep(self.delay_s)
        if self.hold is not None:
            self.hold.wait(HANG_S)


@dataclass
class Gateway:
    """What both servers serve. `faults` are used up one an inference, from the left."""

    models: dict[str, Model] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    config_requests: int = 0
    inferences: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> Fault | None:
        with self.lock:
            self.inferences += 1
            return self.faults.popleft() if self.faults else None

    def config(self, name: str) -> Model | None:
        with self.lock:
            self.config_requests += 1
        return self.models.get(name)

    def answer(self, asked: Asked) -> Arrays:
        with self.lock:
            self.asked.append(asked)
        model = self.models[asked.model]
        answer = model.answer(asked)
        return {name: answer[name] for name in asked.outputs or model.outputs}

    def refusal(self, model: str, outputs: Sequence[str]) -> str:
        """Return Triton's words for the first output that a model lacks, or nothing."""
        lacking = [name for name in outputs if name not in self.models[model].outputs]
        return f"unexpected inference output '{lacking[0]}' for model '{model}'" if lacking else ""

    @contextmanager
    def http(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Serve HTTP and yield the URL."""
        handler = type("Handler", (_Handler,), {"gateway": self})
        with _Server(("127.0.0.1", 0), handler) as server:
            if tls is not None:
                # The handshake is left to the thread of the connection.
                server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()

    @contextmanager
    def grpc(self, tls: grpc.ServerCredentials | None = None, address: str = "127.0.0.1:0") -> Iterator[str]:
        """Serve gRPC and yield the URL."""
        server = grpc.server(futures.ThreadPoolExecutor(32))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), server)
        port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
        server.start()
        try:
            yield f"http{'s' if tls else ''}://{address.rpartition(':')[0]}:{port}"
        finally:
            server.stop(0).wait()


def _raw(array: np.ndarray) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    # tritonclient serialises an empty array to an empty array, which has no item.
    return bytes(serialize_byte_tensor(array).item()) if array.size else b""


def _array(datatype: str, shape: list[int], raw: bytes) -> np.ndarray:
    if datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(shape)
    return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)


def _datatype(array: np.ndarray) -> str:
    return str(np_to_triton_dtype(array.dtype))


class _Server(ThreadingHTTPServer):
    # The default of 5 makes a burst of connections wait a second for the retransmission.
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that go away, or are not trusted, are what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.split("/")[3]
        model = self.gateway.config(name)
        if model is None:
            return self._error(404, f"Request for unknown model: '{name}' is not found")
        parameters = {key: {"string_value": value} for key, value in model.parameters.items()}
        config = {"name": name, "output": [{"name": output} for output in model.outputs], "parameters": parameters}
        if model.pixels is not None:
            config["input"] = [{"name": "PIXELS", "data_type": model.pixels, "dims": [-1, -1, 1]}]
        return self._send(200, json.dumps(config).encode(), {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.gateway.next_fault() or Fault()
        fault.wait()
        if fault.drop:
            self.close_connection = True
            return None
        if fault.http is not None:
            return self._error(fault.http, fault.message, fault.headers)
        name = urlsplit(self.path).path.split("/")[3]
        if name not in self.gateway.models:
            return self._error(404, f"Request for unknown model: '{name}' is not found")
        length = int(self.headers["Inference-Header-Content-Length"])
        header = json.loads(body[:length])
        refusal = self.gateway.refusal(name, [entry["name"] for entry in header.get("outputs", ())])
        if refusal:
            return self._error(400, refusal)
        answer, header_length = self._answer(name, header, body[length:])
        self.close_connection = fault.hang_up
        return self._faulty(fault, answer, header_length)

    def _faulty(self, fault: Fault, answer: bytes, header_length: int) -> None:
        if fault.body is not None:
            return self._send(200, fault.body, fault.headers)
        if fault.truncate_to is None and fault.trickle_s is None:
            return self._send(200, answer, {"Inference-Header-Content-Length": str(header_length)})
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        for byte in answer[: fault.truncate_to]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(fault.trickle_s or 0)
        self.close_connection = True
        return None

    def _answer(self, name: str, header: dict[str, Any], rest: bytes) -> tuple[bytes, int]:
        inputs, start = {}, 0
        for entry in header["inputs"]:
            size = entry["parameters"]["binary_data_size"]
            inputs[entry["name"]] = _array(entry["datatype"], entry["shape"], rest[start : start + size])
            start += size
        outputs = [entry["name"] for entry in header.get("outputs", ())]
        headers = {key.lower(): value for key, value in self.headers.items()}
        arrays = self.gateway.answer(Asked(name, inputs, outputs, header.get("parameters", {}), headers))
        raws = {key: _raw(array) for key, array in arrays.items()}
        entries = [
            {
                "name": key,
                "datatype": _datatype(array),
                "shape": array.shape,
                "parameters": {"binary_data_size": len(raws[key])},
            }
            for key, array in arrays.items()
        ]
        text = json.dumps({"model_name": name, "model_version": "1", "outputs": entries}).encode()
        return b"".join((text, *raws.values())), len(text)

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": message}).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self.gateway.config(request.name)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        answer = service_pb2.ModelConfigResponse()
        for output in model.outputs:
            answer.config.output.add(name=output)
        for key, value in model.parameters.items():
            answer.config.parameters[key].string_value = value
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        fault = self.gateway.next_fault() or Fault()
        fault.wait()
        if fault.grpc is not None:
            context.set_trailing_metadata(tuple(fault.headers.items()))
            context.abort(grpc.StatusCode[fault.grpc], fault.message)
        inputs = {
            entry.name: _array(entry.datatype, list(entry.shape), raw)
            for entry, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        parameters = {
            key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in request.parameters.items()
        }
        outputs, headers = [output.name for output in request.outputs], dict(context.invocation_metadata())
        if refusal := self.gateway.refusal(request.model_name, outputs):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, refusal)
        asked = Asked(request.model_name, inputs, outputs, parameters, headers)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for key, array in self.gateway.answer(asked).items():
            answer.outputs.add(name=key, datatype=_datatype(array), shape=array.shape)
            answer.raw_output_contents.append(_raw(array))
        if fault.truncate_to is not None:
            del answer.raw_output_contents[-1]
        return answer
