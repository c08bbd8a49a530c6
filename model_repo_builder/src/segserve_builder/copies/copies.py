"""Copies of callers' requests, the little that is read of them before they are sent, and the worker that reads more.

A copy requests no output that the other revision may lack: neither would be compared, and Triton refuses the request.
Nor does it request an overlay, which is large, takes long to draw, and may have replaced what is compared.

A worker is a child process that gets one message after the other, and is ended if it takes too long. A service and
its worker speak in frames: a length, a header of JSON, and blobs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, Final, Literal, TypeAlias
from urllib.parse import unquote

from segserve_builder.copies.http_server import ReceivedRequest
from segserve_builder.spec.names import OPTIONAL_OUTPUTS, SLICE_HEADER
from segserve_common.interpreter import python
from segserve_common.logs import LogSettings, start_logging

CopyProtocol: TypeAlias = Literal["http", "grpc"]

MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
HEADER_LENGTH: Final = "inference-header-content-length"
"""The same as in `segserve_common.kserve`, without its numpy: this process only passes on what others compute with."""
_INFER: Final = re.compile(r"/v2/models/(?P<model>[^/]+)(/versions/[0-9]+)?/infer")
_FRAME_BYTES: Final = 5
_NAMES_BYTES: Final = 512
"""Part of a gRPC message: its tensors come last, and what differs between requests for one image is a short id."""
_MAX_FIELDS: Final = 10_000
"""A request's message has some dozen fields; to walk through millions would keep other callers' copies waiting."""
_SEQUENCE: Final = b"sequence_id"
_EMBEDDING: Final = b"EMBEDDING"
"""Input with the id of an image that one server of one revision holds."""
_MOST_JSON_BYTES: Final = 2**20
"""Most JSON of a body whose list of outputs is rewritten; parsing more would keep other callers' copies waiting."""
_OVERLAY: Final = b"OVERLAY"
_LEFT_OUT: Final = frozenset({*(name.encode() for name in OPTIONAL_OUTPUTS), _OVERLAY})
_REWRITTEN: Final = (*_LEFT_OUT, b'"overlay"')
_MODEL_NAME, _PARAMETERS, _INPUT, _REQUESTED_OUTPUT = 1, 4, 5, 6
_TENSOR_NAME: Final = 1
_KEY, _VALUE, _STRING_PARAMETER = 1, 2, 3
"""Fields of an entry of a message's parameters, and of the value in it."""
OTHER: Final = "other"
"""The label of requests whose own cannot be taken."""
_SLICE: Final = b"segserve_slice"
_JSON_SLICE: Final = re.compile(rb'"segserve_slice"\s*:\s*"([^"\\]*)"')
_BAGGAGE_KEY: Final = "segserve.slice"
_LABEL: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
NICENESS: Final = 10
LENGTH: Final = struct.Struct("<I")
"""Length of the header in bytes; the header's `sizes` are the lengths of the blobs."""
READY: Final = b"\n"
"""Written by the worker once it has loaded what it needs."""
TIMEOUT_S: Final = 10.0
"""A question that takes longer has no answer, and ends the worker."""
START_TIMEOUT_S: Final = 120.0
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_BUFFER_BYTES: Final = 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestCopy:
    """An inference as a caller sent it: over HTTP a body and what its headers say of it, over gRPC a message.

    in_stream: it continues a stream, whose next image only the caller may send, or has the id of an image in place of
    it. slice: the label by which the caller says where it comes from, empty without one.
    """

    model: str
    protocol: CopyProtocol
    target: str
    body: bytes
    content_type: str = ""
    header_length: str = ""
    in_stream: bool = False
    slice: str = ""


def image_digest(copy: RequestCopy) -> bytes:
    """Return a digest of what a copy has behind its names and ids: equal images have equal ones."""
    names = int(copy.header_length) if copy.header_length.isdecimal() else min(_NAMES_BYTES, len(copy.body) // 2)
    return blake2b(copy.body[names:], digest_size=16).digest()


def read_copy(request: ReceivedRequest) -> RequestCopy | None:
    """Return a request's inference, None for any other request and for a malformed one."""
    path = request.target.partition("?")[0]
    if request.body is None or request.method != "POST":
        return None
    if path == MODEL_INFER:
        return _grpc_copy(request)
    match = _INFER.fullmatch(path)
    if match is None:
        return None
    header_length = request.headers.get(HEADER_LENGTH, "")
    try:
        body, header_length = _json_of_both(request.body, header_length)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return RequestCopy(
        match["model"],
        "http",
        request.target,
        body,
        request.headers.get("content-type", ""),
        header_length,
        _continues_stream(body, header_length),
        slice_of(request.headers, _json_label(body, header_length)),
    )


def model_of(request: ReceivedRequest) -> str | None:
    """Return the model that the path of a request names."""
    match = _INFER.fullmatch(request.target.partition("?")[0])
    return None if match is None else match["model"]


def slice_of(headers: Mapping[str, str], parameter: bytes = b"") -> str:
    """Return the label of a request: from its header, else its parameter, else its OpenTelemetry baggage.

    Empty if it has no label; `other` if it is not 1 to 40 letters, digits, dots, underscores and hyphens.
    """
    label = headers.get(SLICE_HEADER, "") or parameter.decode("utf-8", "replace") or _of_baggage(headers)
    return label if not label or _LABEL.fullmatch(label) else OTHER


def _of_baggage(headers: Mapping[str, str]) -> str:
    """Return the value of the key in a header as W3C's Baggage has it: `key=value;property, key=value`."""
    for member in headers.get("baggage", "").split(","):
        key, _, value = member.partition(";")[0].partition("=")
        if key.strip() == _BAGGAGE_KEY:
            return unquote(value.strip())
    return ""


def _json_label(body: bytes, header_length: str) -> bytes:
    match = _JSON_SLICE.search(body, 0, _json_end(body, header_length))
    return b"" if match is None else match[1]


def _json_end(body: bytes, header_length: str) -> int:
    is_length = header_length.isascii() and header_length.isdecimal() and len(header_length) <= 18
    return int(header_length) if is_length else len(body)


def _json_of_both(body: bytes, header_length: str) -> tuple[bytes, str]:
    """Return a body without what a copy leaves out, and its header's length; an error if it is malformed."""
    end = _json_end(body, header_length)
    if all(body.find(name, 0, end) < 0 for name in _REWRITTEN):
        return body, header_length
    if end > _MOST_JSON_BYTES:
        raise ValueError("too long to be rewritten")
    content = json.loads(body[:end])
    if "outputs" in content:
        content["outputs"] = [output for output in content["outputs"] if output["name"].encode() not in _LEFT_OUT]
    for name, value in tuple(content.get("parameters", {}).items()):
        if _is_of_overlay(name.encode(), str(value).encode()):
            del content["parameters"][name]
    header = json.dumps(content).encode()
    return header + body[end:], str(len(header)) if header_length else ""


def _continues_stream(body: bytes, header_length: str) -> bool:
    end = _json_end(body, header_length)
    # A caller that escapes a letter may hide the word; its requests are then not compared either.
    return any(body.find(word, 0, end) >= 0 for word in (_SEQUENCE, b'"%b"' % _EMBEDDING, b"\\u"))


def _grpc_copy(request: ReceivedRequest) -> RequestCopy | None:
    body = request.body
    assert body is not None
    if len(body) < _FRAME_BYTES or body[0] or int.from_bytes(body[1:_FRAME_BYTES], "big") != len(body) - _FRAME_BYTES:
        return None  # compressed, cut off, or more than one message
    message = body[_FRAME_BYTES:]
    models: list[bytes] = []
    in_stream, label = False, b""
    kept: list[bytes] = []
    kept_to = 0
    try:
        for number, begin, start, end in _fields(message):
            part = message[start:end] if number in (_PARAMETERS, _INPUT, _REQUESTED_OUTPUT) else b""
            names = {part[first:last] for field, _, first, last in _fields(part) if field == _TENSOR_NAME}
            is_left_out = number == _REQUESTED_OUTPUT and not _LEFT_OUT.isdisjoint(names)
            if number == _MODEL_NAME:
                models.append(message[start:end])
            elif number == _INPUT:
                in_stream |= _EMBEDDING in names
            elif number == _PARAMETERS:
                in_stream |= _SEQUENCE in part
                fields = {field: part[first:last] for field, _, first, last in _fields(part)}
                value, name = fields.get(_VALUE, b""), fields.get(_KEY, b"")
                texts = {kind: value[first:last] for kind, _, first, last in _fields(value)}
                text = texts.get(_STRING_PARAMETER, b"")
                label = text if text and name == _SLICE else label
                is_left_out = _is_of_overlay(name, text)
            if is_left_out:
                kept.append(message[kept_to:begin])
                kept_to = end
        # Readers differ about a message that names two: the gateway may have chosen its route by the other.
        (model,) = (name.decode() for name in models)
    except ValueError:
        return None
    message = b"".join((*kept, message[kept_to:])) if kept else message
    return RequestCopy(model, "grpc", MODEL_INFER, message, in_stream=in_stream, slice=slice_of(request.headers, label))


def _is_of_overlay(name: bytes, value: bytes) -> bool:
    """Return whether a parameter requests an overlay, or lists the outputs beside which it is read."""
    return name == b"overlay" or (name == b"outputs" and _OVERLAY in value)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields that are bytes: number, where the field begins, and where its content begins and ends.

    Raises `ValueError` for anything malformed.
    """
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == len(message):
            return
        begin = at
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, start = _varint(message, at)
            at = start + size
            if at <= len(message):
                yield number, begin, start, at
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED_64, _FIXED_32):
            at += 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("a field runs past the end")
    raise ValueError("too many fields")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where the next thing begins."""
    value = 0
    for place in range(10):
        if at + place >= len(message):
            break
        byte = message[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at + place + 1
    raise ValueError("a number runs past the end")


@dataclass(frozen=True, slots=True)
class WorkerFrame:
    """A header, and blobs behind it."""

    header: Mapping[str, Any]
    blobs: Sequence[bytes]

    def pack(self) -> list[bytes]:
        """Return the parts as they are written."""
        header = json.dumps({**self.header, "sizes": [len(blob) for blob in self.blobs]}).encode()
        return [LENGTH.pack(len(header)), header, *self.blobs]


def read_frame(stream: BinaryIO) -> WorkerFrame | None:
    """Read a frame; None at the end."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    header = json.loads(stream.read(LENGTH.unpack(length)[0]))
    return WorkerFrame(header, [stream.read(size) for size in header["sizes"]])


def answer_frames(answer: Callable[[WorkerFrame], WorkerFrame], *, memory_bytes: int) -> None:
    """Answer the frames at stdin until it ends, with so much memory (RLIMIT_DATA), and behind other processes."""
    # Whatever prints must not write between the frames.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start_logging(LogSettings.of(os.environ))
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    answers.write(READY)
    answers.flush()
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        answers.writelines(answer(frame).pack())
        answers.flush()


class FrameWorker:
    """Asks a module's process. It starts with the first question, and gets `environment`, by default this one's."""

    def __init__(
        self, module: str, *, timeout_s: float = TIMEOUT_S, environment: Mapping[str, str] | None = None
    ) -> None:
        self._module = module
        self._timeout_s = timeout_s
        self._environment = environment
        self._turn = asyncio.Lock()
        self.process: asyncio.subprocess.Process | None = None

    async def close(self) -> None:
        """End the process."""
        worker, self.process = self.process, None
        if worker is not None:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()

    async def ask(self, question: WorkerFrame) -> WorkerFrame | None:
        """Return the answer, None if it failed or took too long."""
        async with self._turn:
            is_done = False
            try:
                worker = self.process or await self._start()
                async with asyncio.timeout(self._timeout_s):
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    worker.stdin.writelines(question.pack())
                    await worker.stdin.drain()
                    header = json.loads(
                        await worker.stdout.readexactly(LENGTH.unpack(await worker.stdout.readexactly(LENGTH.size))[0])
                    )
                    answer = WorkerFrame(header, [await worker.stdout.readexactly(size) for size in header["sizes"]])
                is_done = True
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                _log.warning("%s has not answered: %s", self._module, type(error).__name__)
                return None
            finally:
                # Whatever it still does belongs to this question: the next one must not get its answer.
                if not is_done:
                    await self.close()
            return answer

    async def _start(self) -> asyncio.subprocess.Process:
        environment = os.environ if self._environment is None else self._environment
        worker = self.process = await asyncio.create_subprocess_exec(
            *python("-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, **_ONE_THREAD},
            limit=_BUFFER_BYTES,
        )
        assert worker.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            await worker.stdout.readexactly(len(READY))
        return worker
