"""Checks of a network's signature that families share; all raise `SignatureError`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Literal

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import ModelContext, NetworkSignature, TensorSpec

IMAGE_DTYPES: Final = ("UINT8", "UINT16", "FP16", "FP32")
CHANNELS: Final = {"RGB": 3, "GREY": 1}


def described(tensor: TensorSpec) -> str:
    """Describe a tensor by name, dtype and shape: `'logits' FP32 [?, 2, 384, 384]`."""
    shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name!r} {tensor.dtype} [{shape}]"


def described_all(tensors: Iterable[TensorSpec]) -> str:
    """Describe tensors one after another; `none` if there are none."""
    return ", ".join(described(tensor) for tensor in tensors) or "none"


def image_input(
    signature: NetworkSignature, model: ModelContext, *, may_be_single: bool = False
) -> tuple[TensorSpec, Literal["NCHW", "NHWC"]]:
    """Return the one image input and its layout.

    With `may_be_single` it may lack the batch, as in detectors exported for one image; a batch of one is prepended.
    Raises `SignatureError` if there is no such input.
    """
    if len(signature.inputs) != 1:
        inputs = described_all(signature.inputs)
        raise SignatureError(f"the network has {len(signature.inputs)} inputs: {inputs}; expected one, the image")
    tensor = signature.inputs[0]
    if may_be_single and len(tensor.shape) == 3:
        tensor = replace(tensor, shape=(1, *tensor.shape))
    if tensor.dtype not in IMAGE_DTYPES:
        raise SignatureError(f"input {described(tensor)}: allowed dtypes are {', '.join(IMAGE_DTYPES)}")
    layout = _layout(tensor, model)
    check_batch("input", tensor, model)
    return tensor, layout


def float_output(tensor: TensorSpec, model: ModelContext, rank: int, shape: str) -> TensorSpec:
    """Return `tensor`, an FP32 output of `rank` dimensions; `shape` names the dimensions in errors.

    Raises `SignatureError` if it is another.
    """
    if tensor.dtype != "FP32":
        raise SignatureError(f"output {described(tensor)}: the dtype must be FP32")
    if len(tensor.shape) != rank:
        raise SignatureError(f"output {described(tensor)}: the shape must be {shape}")
    check_batch("output", tensor, model)
    return tensor


def thing_ids(model: ModelContext) -> frozenset[int]:
    """Return the ids of the classes whose objects are counted."""
    return frozenset(item.id for item in model.classes if item.thing)


def check_batch(kind: str, tensor: TensorSpec, model: ModelContext) -> None:
    """Check that a tensor's batch is free, or 1 as the runtime's; `kind` is input or output.

    Raises `SignatureError` if it is not.
    """
    batch, limit = tensor.shape[0], model.runtime.max_batch_size
    if batch is None or (batch == 1 and limit == 1):
        return
    raise SignatureError(
        f"{kind} {described(tensor)}: the batch size must be free, or 1 with runtime.maxBatchSize 1; "
        f"it is {batch} with runtime.maxBatchSize {limit}"
    )


def _layout(tensor: TensorSpec, model: ModelContext) -> Literal["NCHW", "NHWC"]:
    colour = model.input.colour
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
