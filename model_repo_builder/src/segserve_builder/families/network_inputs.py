"""The inputs of networks: the image, and what networks take beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    CHANNELS,
    IMAGE_DTYPES,
    ModelContext,
    NetworkSignature,
    TensorSpec,
    check_batch,
    described,
    described_all,
)
from segserve_builder.values import ResizeTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_MASK: Final = "pixel_mask"
_NUMPY: Final = {"BOOL": "bool", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32"}


@dataclass(frozen=True, slots=True)
class ExtraInput:
    """An input that networks take beside the image: its dtypes, its shape without the batch, and its values.

    `values` returns those of one image by the image's place in the network's input, and by the shape that the file
    declares, without the batch. None is a free dimension.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]
    values: Callable[[ResizeTransform, tuple[int | None, ...]], Any]

    def fits(self, tensor: TensorSpec) -> bool:
        """Return whether a tensor has one of the dtypes, and the shape behind a batch."""
        sizes = zip(self.shape, tensor.shape[1:], strict=False)
        same_rank = len(tensor.shape) == 1 + len(self.shape)
        return tensor.dtype in self.dtypes and same_rank and all(a == b or None in (a, b) for a, b in sizes)

    def __str__(self) -> str:
        return f"{' or '.join(self.dtypes)} [batch, {', '.join(map(str, self.shape)).replace('None', '?')}]"


def _image_mask(place: ResizeTransform, size: tuple[int | None, ...]) -> Any:
    """Return where the image is, bool (h, w); of another size than the network's input by nearest neighbours."""
    import numpy as np

    inside = []
    for cells, whole, start, inner in (
        (size[0], place.input_height, place.top, place.inner_height),
        (size[1], place.input_width, place.left, place.inner_width),
    ):
        at = np.arange(cells or whole) * whole // (cells or whole)
        inside.append((at >= start) & (at < start + inner))
    return inside[0][:, None] & inside[1]


_SIZES: Final = ("INT64", "INT32", "FP32")
EXTRA_INPUTS: Final[Mapping[str, ExtraInput]] = {
    PIXEL_MASK: ExtraInput(tuple(_NUMPY), (None, None), _image_mask),
    "orig_target_sizes": ExtraInput(_SIZES, (2,), lambda place, _: (place.input_width, place.input_height)),
    "im_shape": ExtraInput(("FP32",), (2,), lambda place, _: (place.input_height, place.input_width)),
    "scale_factor": ExtraInput(("FP32",), (2,), lambda place, _: (1, 1)),
}
"""By name, in any case: transformers' mask of padding, and the sizes by which RT-DETR, D-FINE and PaddleDetection scale
boxes. Sizes are the network's own input: families read boxes in its pixels."""


def extra_inputs(signature: NetworkSignature) -> tuple[TensorSpec, ...]:
    """Return the inputs of `EXTRA_INPUTS`, which the network has beside the image, in the file's order."""
    single = len(signature.inputs) == 1
    return () if single else tuple(tensor for tensor in signature.inputs if tensor.name.lower() in EXTRA_INPUTS)


def extra_array(tensor: TensorSpec, place: ResizeTransform) -> NDArray[Any]:
    """Return one image's array for an extra input, of the tensor's dtype and shape with a batch of one."""
    import numpy as np

    values = EXTRA_INPUTS[tensor.name.lower()].values(place, tensor.shape[1:])
    return np.asarray(values, _NUMPY[tensor.dtype])[None]


def image_tensor(signature: NetworkSignature) -> TensorSpec:
    """Return the input that is the image; raises `SignatureError` if one of the others is not in `EXTRA_INPUTS`."""
    extra = extra_inputs(signature)
    others = [tensor for tensor in signature.inputs if tensor not in extra]
    if len(others) != 1:
        image = next((each for each in others if each.dtype in IMAGE_DTYPES and len(each.shape) > 2), None)
        strange = [tensor for tensor in others if tensor is not image]
        allowed = "; ".join(f"{name!r} {each}" for name, each in EXTRA_INPUTS.items())
        raise SignatureError(
            f"the network has {len(signature.inputs)} inputs: {described_all(signature.inputs)}; expected the image, "
            f"and beside it {allowed}; make what is none of them a constant of the graph: {described_all(strange)}"
        )
    for tensor in extra:
        expected = EXTRA_INPUTS[tensor.name.lower()]
        if not expected.fits(tensor):
            raise SignatureError(f"input {described(tensor)} beside the image must be {expected}")
        check_batch("input", tensor)
    return others[0]


def image_input(
    signature: NetworkSignature, model: ModelContext, *, may_be_single: bool = False
) -> tuple[TensorSpec, Literal["NCHW", "NHWC"]]:
    """Return the one image input and its layout.

    With `may_be_single` it may lack the batch, as in detectors exported for one image; a batch of one is prepended.
    Raises `SignatureError` if there is no such input, or if those beside it are not in `EXTRA_INPUTS`.
    """
    tensor = image_tensor(signature)
    if may_be_single and len(tensor.shape) == 3:
        tensor = replace(tensor, shape=(1, *tensor.shape))
    if tensor.dtype not in IMAGE_DTYPES:
        raise SignatureError(f"input {described(tensor)}: allowed dtypes are {', '.join(IMAGE_DTYPES)}")
    layout = _layout(tensor, model)
    check_batch("input", tensor)
    return tensor, layout


def _layout(tensor: TensorSpec, model: ModelContext) -> Literal["NCHW", "NHWC"]:
    colour = model.input.colour
    channels = CHANNELS[colour]
    if len(tensor.shape) == 4:
        if tensor.shape[1] == channels:
            return "NCHW"
        if tensor.shape[3] == channels:
            return "NHWC"
        if tensor.shape[1] is None and tensor.shape[3] not in CHANNELS.values():
            return "NCHW"
    raise SignatureError(
        f"input {described(tensor)}: for colour {colour} the shape must be "
        f"[batch, {channels}, height, width] or [batch, height, width, {channels}]"
    )
