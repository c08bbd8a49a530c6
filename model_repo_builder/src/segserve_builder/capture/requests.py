"""The request by which the capture service asks again what a caller asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from segserve_builder.capture.rule import CaptureRule
from segserve_builder.copies.bodies import MALFORMED, WireBody, read_image, read_parameters
from segserve_builder.copies.copies import RequestCopy
from segserve_builder.copies.http_server import ReceivedRequest
from segserve_common.kserve import HEADER_LENGTH, InferRequest, Parameter, Tensor, encode_http, model_path

_KEPT_PARAMETERS: Final = ("score_threshold", "max_detections")
"""Parameters that change an answer and hold nothing of a person; all others are left out, and never written."""


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """A copy as the service asks it, with all outputs: the image, and the caller's parameters that are kept."""

    copy: RequestCopy
    image: Tensor
    parameters: Mapping[str, float]


def own_request(copy: RequestCopy, rule: CaptureRule) -> OwnRequest | None:
    """Return the request for a copy's image, None if that cannot be read, or is a batch of several.

    Where its answer says what is redacted, it has no parameter of the caller: a threshold would uncover what is hidden.
    """
    body = WireBody(copy.body, copy.header_length)
    kept: dict[str, float] = {}
    try:
        image = read_image(copy.protocol, body)
        stated = read_parameters(copy.protocol, body)
        if rule.redact is None or rule.redact.model:
            kept |= {name: _number(stated[name]) for name in _KEPT_PARAMETERS if name in stated}
    except MALFORMED:
        return None
    if image is None or (len(image.shape) == 4 and image.shape[0] != 1):
        return None
    encoding = {"encoding": "rle"} if rule.as_rle else {}
    return OwnRequest(_infer_copy(copy.model, image, {**kept, **encoding}), image, kept)


def redaction_request(own: OwnRequest, model: str) -> RequestCopy:
    """Return the request by which `model` says what of the image is redacted, without any parameter of the caller."""
    return _infer_copy(model, own.image, {})


def _number(value: Any) -> float:
    """Return a parameter as a server reads it, also from text; raises for what every server refuses."""
    number = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(number):
        raise ValueError(f"a parameter is {value!r}; allowed is a finite number")
    return number


def _infer_copy(model: str, image: Tensor, parameters: Mapping[str, Parameter]) -> RequestCopy:
    headers, content = encode_http(InferRequest(model, (image,), parameters=parameters))
    return RequestCopy(
        model, "http", f"{model_path(model)}/infer", content, headers["Content-Type"], headers[HEADER_LENGTH]
    )


def request_id_of(request: ReceivedRequest) -> str:
    """Return the id of a request, `x-request-id` as its caller sent it; bytes that are no UTF-8 are surrogates."""
    return request.headers.get("x-request-id", "").encode("latin-1").decode("utf-8", "surrogateescape")
