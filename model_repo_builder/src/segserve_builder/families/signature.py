"""Checks of a network's signature that families share; all raise `SignatureError`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from segserve_builder.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve_builder.families.base import NetworkSignature, TensorSpec
    from segserve_builder.steps.pipeline import Pipeline

IMAGE_DTYPES: Final = ("UINT8", "UINT16", "FP16", "FP32")
CHANNELS: Final = {"RGB": 3, "GREY": 1}


def described(tensor: TensorSpec) -> str:
    """Name a tensor with its dtype and shape: `'logits' FP32 [?, 2, 384, 384]`."""
    shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name!r} {tensor.dtype} [{shape}]"


def described_all(tensors: Iterable[TensorSpec]) -> str:
    """Name tensors one after another, or say that there are none."""
    return ", ".join(described(tensor) for tensor in tensors) or "none"


def image_input(
    signature: NetworkSignature, pipeline: Pipeline, *, may_be_single: bool = False
) -> tuple[TensorSpec, Literal["NCHW", "NHWC"]]:
    """Return the one image input and its layout.

    With `may_be_single` it may lack the batch, as detectors are exported that take one image; a batch of one is put
    before its shape.
    """
    if len(signature.inputs) != 1:
        seen = described_all(signature.inputs)
        raise SignatureError(f"a network has one input, the image; this one has {len(signature.inputs)}: {seen}")
    tensor = signature.inputs[0]
    if may_be_single and len(tensor.shape) == 3:
        tensor = replace(tensor, shape=(1, *tensor.shape))
    if tensor.dtype not in IMAGE_DTYPES:
        raise SignatureError(f"input {described(tensor)}: allowed dtypes are {', '.join(IMAGE_DTYPES)}")
    layout = _layout(tensor, pipeline)
    check_batch("input", tensor, pipeline)
    return tensor, layout


def float_output(tensor: TensorSpec, pipeline: Pipeline, rank: int, meaning: str) -> TensorSpec:
    """Return `tensor`, an FP32 output of `rank` dimensions; `meaning` says which ones in an error."""
    if tensor.dtype != "FP32":
        raise SignatureError(f"output {described(tensor)}: the dtype must be FP32")
    if len(tensor.shape) != rank:
        raise SignatureError(f"output {described(tensor)}: the shape must be {meaning}")
    check_batch("output", tensor, pipeline)
    return tensor


def things(pipeline: Pipeline) -> frozenset[int]:
    """Return the ids of the classes whose objects are counted."""
    return frozenset(item.id for item in pipeline.classes if item.thing)


def check_batch(kind: str, tensor: TensorSpec, pipeline: Pipeline) -> None:
    """Raise where the batch of a tensor is fixed to another size than the runtime's; `kind` is input or output."""
    batch, most = tensor.shape[0], pipeline.runtime.max_batch_size
    if batch is None or (batch == 1 and most == 1):
        return
    raise SignatureError(
        f"{kind} {described(tensor)}: the batch size must be free, or 1 with runtime.maxBatchSize 1; "
        f"here it is {batch} with runtime.maxBatchSize {most}"
    )


def _layout(tensor: TensorSpec, pipeline: Pipeline) -> Literal["NCHW", "NHWC"]:
    colour = pipeline.input.colour
    channels = CHANNELS[colour]
    if len(tensor.shape) == 4:
        if tensor.shape[1] == channels:
            return "NCHW"
        if tensor.shape[3] == channels:
            return "NHWC"
    raise SignatureError(
        f"input {described(tensor)}: for colour {colour} the shape must be "
        f"[batch, {channels}, height, width] or [batch, height, width, {channels}]"
    )
