"""A server that responds to every inference at once with a recorded response, so that only the client takes time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from segserve.transports.grpc import to_grpc
from segserve_common.kserve import InferAnswer, InferRequest, encode_http

SERVICE = "inference.GRPCInferenceService"
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Recording:
    """A model's configuration and one response over both protocols, in files of a folder."""

    folder: Path

    def record(self, url: str, request: InferRequest) -> None:
        """Send one request to a gateway over each protocol, and record the responses."""
        model = request.model
        headers, body = encode_http(request)
        with httpx.Client(base_url=url, trust_env=False) as http:
            config = http.get(f"/v2/models/{model}/config")
            answer = http.post(f"/v2/models/{model}/infer", headers=headers, content=body)
        length = answer.raise_for_status().headers[HEADER_LENGTH]
        self._write("config.json", config.raise_for_status().content)
        self._write("answer.http", answer.content)
        self._write("answer.length", length.encode())
        with grpc.insecure_channel(url.removeprefix("http://")) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            config_message = stub.ModelConfig(service_pb2.ModelConfigRequest(name=model))
            self._write("config.grpc", config_message.SerializeToString())
            _, message = to_grpc(stub, request)
            self._write("answer.grpc", stub.ModelInfer(message).SerializeToString())

    def make_up(self, model: str, answer: InferAnswer) -> None:
        """Write a response that no server gave, for a machine that runs none."""
        message = service_pb2.ModelInferResponse(model_name=model, model_version="1")
        config = service_pb2.ModelConfigResponse()
        config.config.name = model
        (revision,) = answer["REVISION"].to_items()
        config.config.parameters["revision"].string_value = revision.decode()
        header: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": []}
        for name, tensor in answer.outputs.items():
            config.config.output.add(name=name)
            about = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
            message.outputs.add(**about)
            message.raw_output_contents.append(tensor.raw)
            header["outputs"].append({**about, "parameters": {"binary_data_size": len(tensor.raw)}})
        text = json.dumps(header).encode()
        plain = json_format.MessageToDict(config.config, preserving_proto_field_name=True)
        self._write("config.json", json.dumps(plain).encode())
        self._write("answer.http", text + b"".join(message.raw_output_contents))
        self._write("answer.length", str(len(text)).encode())
        self._write("config.grpc", config.SerializeToString())
        self._write("answer.grpc", message.SerializeToString())

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)


@contextmanager
def serve(recording: Recording) -> Iterator[tuple[str, str]]:
    """Serve a recording in a separate process; yields the URLs for HTTP and gRPC."""
    command = [sys.executable, "-m", "bench.client.canned", str(recording.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            http, rpc = json.loads(process.stdout.readline())
            yield f"http://127.0.0.1:{http}", f"http://127.0.0.1:{rpc}"
        finally:
            process.terminate()


class Answering(asyncio.Protocol):
    """One HTTP/1.1 connection; a request is complete when its Content-Length has arrived."""

    def __init__(self, config: bytes, answer: bytes) -> None:
        self._config, self._answer = config, answer
        self._buffer = bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end]).lower()
            _, _, rest = head.partition(b"content-length:")
            whole = end + 4 + int(rest.split(b"\r\n")[0] or 0)
            if len(self._buffer) < whole:
                return
            del self._buffer[:whole]
            self._transport.write(self._config if head.startswith(b"get") else self._answer)


def reply(body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in {"Content-Length": str(len(body)), **headers}.items()]
    return "\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode() + body


def rpc_server(recording: Recording) -> tuple[Any, int]:
    """Start a gRPC server that responds with the recorded bytes; return it and its port."""
    answers = {
        f"/{SERVICE}/ModelConfig": recording.read("config.grpc"),
        f"/{SERVICE}/ModelInfer": recording.read("answer.grpc"),
    }

    class Copies(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            answer = answers[details.method]
            return grpc.unary_unary_rpc_method_handler(lambda *_: answer)

    options = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Copies()], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


async def main(folder: Path) -> None:
    recording = Recording(folder)
    config = reply(recording.read("config.json"), {})
    answer = reply(recording.read("answer.http"), {HEADER_LENGTH: recording.read("answer.length").decode()})
    listening = await asyncio.get_running_loop().create_server(lambda: Answering(config, answer), "127.0.0.1", 0)
    _server, port = rpc_server(recording)
    print(json.dumps([listening.sockets[0].getsockname()[1], port]), flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
