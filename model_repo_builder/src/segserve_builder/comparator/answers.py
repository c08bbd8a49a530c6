"""Reads the answers of a pair, compares them, and puts a pair that differs into the form of a sheet. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from segserve_builder.comparator.sheet import MOST_PAIR_BYTES, SheetPair
from segserve_builder.copies.copies import CopyProtocol
from segserve_builder.scoring.agreement import Agreement, Answer, agreement
from segserve_common.errors import ProtocolError, SegserveError
from segserve_common.kserve import BYTES, DTYPES, Tensor, decode_http, decode_raw, json_object

_IMAGES: Final = ("IMAGE", "PIXELS")
MALFORMED: Final = (SegserveError, ValueError, TypeError, LookupError, OverflowError, RecursionError)


class WireBody(NamedTuple):
    """A body as it crossed the wire, and what `Inference-Header-Content-Length` says of it; a message over gRPC."""

    content: bytes
    header_length: str = ""


@dataclass(frozen=True, slots=True)
class ExchangedPair:
    """A request and both answers to it; `asked_at_s` is Unix time."""

    protocol: CopyProtocol
    asked_at_s: float
    request: WireBody
    stable: WireBody
    candidate: WireBody


@dataclass(frozen=True, slots=True)
class ComparedAnswers:
    """How much two answers agree, None if they cannot be compared; a pair of a sheet as JSON if it is to be kept.

    `shift` is how much higher the candidate's mean score is, -1 to 1; None if one of them has no scores.
    """

    agreement: float | None
    sheet_pair: bytes = b""
    shift: float | None = None


def compare_answers(pair: ExchangedPair, *, keep_below: float) -> ComparedAnswers:
    """Compare two answers; a pair that agrees less than `keep_below` comes back for a sheet.

    A candidate's answer that cannot be read, although stable's can, agrees in nothing.
    """
    try:
        stable = read_answer(pair.protocol, pair.stable)
        expected = answer_arrays(stable)
    except MALFORMED:
        return ComparedAnswers(None)
    try:
        candidate = read_answer(pair.protocol, pair.candidate)
        answered = answer_arrays(candidate)
        found = agreement(expected, answered)
    except MALFORMED:
        candidate, answered, found = {}, {}, Agreement(0.0)
    if found is None:
        return ComparedAnswers(None)
    if found.value >= keep_below:
        return ComparedAnswers(found.value, shift=confidence_shift(expected, answered))
    return ComparedAnswers(
        found.value, _sheet_pair(pair, stable, candidate, found), confidence_shift(expected, answered)
    )


def confidence_shift(stable: Answer, candidate: Answer) -> float | None:
    """Return how much higher the candidate's mean score is than stable's; None if one of them shows none."""
    try:
        scores = _mean_score(stable), _mean_score(candidate)
    except MALFORMED:
        return None
    return None if scores[0] is None or scores[1] is None else scores[1] - scores[0]


def _mean_score(answer: Answer) -> float | None:
    """Return the mean score of objects, or the mean confidence of classes weighed by their pixels; 0 to 1."""
    name = next((each for each in ("SCORES", "CONFIDENCE") if each in answer), None)
    if name is None:
        return None
    scores = answer[name].astype(np.float64).ravel()
    areas = answer["AREAS"].astype(np.float64).ravel() if "AREAS" in answer else np.ones(len(scores))
    counts = np.isfinite(scores) & (areas[: len(scores)] > 0) if len(areas) == len(scores) else np.zeros(0, bool)
    if not counts.any():
        return None
    return float(np.clip(np.average(scores[counts], weights=areas[counts]), 0.0, 1.0))


def read_answer(protocol: CopyProtocol, answer: WireBody) -> Mapping[str, Tensor]:
    """Return the outputs of an answer; raises `ProtocolError`, or another error of values, for anything malformed."""
    if protocol == "grpc":
        message = _message("ModelInferResponse", answer.content)
        entries = [(output.name, output.datatype, tuple(output.shape)) for output in message.outputs]
        return decode_raw(entries, message.raw_output_contents).outputs
    if answer.header_length:
        return decode_http(answer.content, answer.header_length).outputs
    # Whoever did not ask for binary tensors is answered in JSON alone.
    tensors = [_tensor_of_json(output) for output in json_object(answer.content)["outputs"]]
    return {tensor.name: tensor for tensor in tensors}


def read_image(protocol: CopyProtocol, request: WireBody) -> Tensor | None:
    """Return the image of a request, None if it has none in binary; raises as `read_answer` does."""
    if protocol == "grpc":
        message = _message("ModelInferRequest", request.content)
        found = zip(message.inputs, message.raw_input_contents, strict=True)
        images = [Tensor(each.name, each.datatype, tuple(each.shape), raw) for each, raw in found]
    else:
        length = int(request.header_length or len(request.content))
        inputs = json_object(request.content[:length])["inputs"]
        images = _binary_tensors(inputs, request.content, length)
    return next((image for image in images if image.name in _IMAGES), None)


def read_parameters(protocol: CopyProtocol, request: WireBody) -> dict[str, Any]:
    """Return the parameters of a request; raises as `read_image` does."""
    if protocol == "grpc":
        stated = _message("ModelInferRequest", request.content).parameters
        return {
            name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in stated.items()
        }
    length = int(request.header_length or len(request.content))
    parameters = json_object(request.content[:length]).get("parameters", {})
    return dict(parameters)


def _message(kind: str, content: bytes) -> Any:
    try:
        return getattr(service_pb2, kind).FromString(content)
    except DecodeError as error:
        raise ProtocolError(f"not a {kind}: {error}") from None


def _binary_tensors(entries: Sequence[Mapping[str, Any]], body: bytes, start: int) -> list[Tensor]:
    tensors = []
    for entry in entries:
        size = int(entry.get("parameters", {}).get("binary_data_size", 0))
        if size:
            raw = body[start : start + size]
            tensors.append(Tensor(str(entry["name"]), str(entry["datatype"]), tuple(map(int, entry["shape"])), raw))
        start += size
    return tensors


def _tensor_of_json(output: Mapping[str, Any]) -> Tensor:
    name, datatype, shape = str(output["name"]), output["datatype"], tuple(map(int, output["shape"]))
    if datatype == BYTES:
        items = Tensor.of_items(name, [str(item).encode() for item in output["data"]])
        return Tensor(name, BYTES, shape, items.raw)
    return Tensor.of_array(name, np.array(output["data"], DTYPES[datatype]).reshape(shape))


def answer_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return the values of tensors; BYTES as arrays of objects."""
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.datatype != BYTES:
        return tensor.to_array()
    items = tensor.to_items()
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(tensor.shape)


def _sheet_pair(
    pair: ExchangedPair, stable: Mapping[str, Tensor], candidate: Mapping[str, Tensor], found: Agreement
) -> bytes:
    """Return a pair as JSON; nothing if it is too large for a sheet, or has no image to be shown."""
    try:
        image = read_image(pair.protocol, pair.request)
    except MALFORMED:
        return b""
    tensors = [*stable.values(), *candidate.values()]
    if image is None or len(image.raw) + sum(len(tensor.raw) for tensor in tensors) > MOST_PAIR_BYTES:
        return b""
    shown = SheetPair.of(pair.asked_at_s, image, stable.values(), candidate.values(), found)
    return shown.model_dump_json().encode()
