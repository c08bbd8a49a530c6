"""The step `pre` as a function: from one image to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segserve_builder.errors import BadImageError
from segserve_builder.families.base import CHANNELS, TensorSpec
from segserve_builder.families.network_inputs import extra_array
from segserve_builder.spec.model_spec import Input
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.decode import Decode, decode_of
from segserve_builder.stages.normalise import Normalise
from segserve_builder.stages.resize import Resize
from segserve_builder.steps.image_statistics import measure
from segserve_builder.steps.pipeline import PipelineStep
from segserve_builder.steps.preprocess_rules import (
    Layout,
    check_network_input,
    check_preprocess,
    network_size,
)
from segserve_builder.values import Encoded, Image, ImageStatistics, ResizeTransform

_NUMPY: Final = {"UINT8": np.uint8, "UINT16": np.uint16, "FP32": np.float32, "FP16": np.float16}
_NO_OVERRIDES: Final = RequestOptions()


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """One image as the network gets it.

    `tensor` is a batch of one in the network's dtype and layout, `transform` where the image lies in it, `guide` the
    image within it, without padding, uint8 (inner_height, inner_width, 3), and `statistics` describe the image as
    decoded, if they were requested. `extra` are the arrays of the inputs beside the image, each a batch of one.
    """

    tensor: NDArray[Any]
    transform: ResizeTransform
    guide: NDArray[np.uint8] | None = None
    statistics: ImageStatistics | None = None
    extra: tuple[NDArray[Any], ...] = ()


class Preprocess:
    """The preprocess stages of one pipeline, bound to the network that they feed.

    Raises `PipelineError` if the stages fit neither each other nor the network.
    """

    def __init__(
        self,
        steps: Sequence[PipelineStep],
        spec: Input,
        network: TensorSpec,
        layout: Layout,
        *,
        guided: bool = False,
        measures: bool = False,
        extra: Sequence[TensorSpec] = (),
    ) -> None:
        check_preprocess(steps, spec)
        check_network_input(steps, spec, network, layout)
        stages = [step.stage for step in steps]
        self._decode = decode_of(stages)
        # What changes pixels comes before what makes numbers of them, as `check_preprocess` saw to.
        self._stages = [stage for stage in stages if not isinstance(stage, Decode | Normalise)]
        self._zeros = any(isinstance(stage, Resize) and stage.padding == "zeros" for stage in stages)
        self._normalise = next((stage for stage in stages if isinstance(stage, Normalise)), None)
        # Read once: attribute access and conversion of typed values do not belong on the way of a request.
        self._colour: Literal["RGB", "GREY"] = "GREY" if spec.colour == "GREY" else "RGB"
        self._is_reversed = spec.colour == "BGR"
        self._dtype, self._max_pixels = spec.dtype, spec.max_pixels
        self._channels = CHANNELS[spec.colour]
        self._network = network.name
        self._network_dtype = _NUMPY[network.dtype]
        self._height, self._width, _ = network_size(network, layout)
        self._channels_first = layout == "NCHW"
        self._guided = guided
        self._measures = measures
        self._extra = extra

    def __call__(self, image: bytes | None, pixels: NDArray[Any] | None) -> NetworkInput:
        """Return the network's input.

        Exactly one is given: `image`, an encoded file, or `pixels`, shaped (H, W, C) and of the model's input
        dtype and channels, RGB if it has three. `pixels` is not changed, but the result may share its memory.

        Raises `BadImageError`.
        """
        value = self._given(image, pixels)
        statistics = measure(value.pixels) if self._measures else None
        for stage in self._stages:
            value = stage(value, _NO_OVERRIDES)
        tensor = self._tensor(value)
        if self._zeros:
            self._clear_padding(tensor, value.transform)
        extra = tuple(extra_array(each, value.transform) for each in self._extra)
        return NetworkInput(tensor[None], value.transform, self._guide(value), statistics, extra)

    def _clear_padding(self, tensor: NDArray[Any], place: ResizeTransform) -> None:
        planes = tensor if self._channels_first else np.moveaxis(tensor, 2, 0)
        planes[:, : place.top] = planes[:, place.top + place.inner_height :] = 0
        planes[:, :, : place.left] = planes[:, :, place.left + place.inner_width :] = 0

    def _guide(self, value: Image) -> NDArray[np.uint8] | None:
        if not self._guided:
            return None
        place = value.transform
        rows, columns = (
            slice(place.top, place.top + place.inner_height),
            slice(place.left, place.left + place.inner_width),
        )
        inner = value.pixels[rows, columns]
        if inner.dtype == np.float32:  # not rounded by `resize`
            inner = np.clip(np.rint(inner), 0, 255).astype(np.uint8)
        eight_bits = inner if inner.dtype == np.uint8 else (inner >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(eight_bits, (*inner.shape[:2], 3)))

    def _given(self, image: bytes | None, pixels: NDArray[Any] | None) -> Image:
        if (image is None) == (pixels is None):
            sent = "neither" if image is None else "both"
            raise BadImageError(f"a request must have exactly one of IMAGE and PIXELS; this one has {sent}")
        if pixels is not None:
            self._check_pixels(pixels)
            if pixels.dtype == np.uint16 and self._decode.window is not None:
                from segserve_builder.imaging.decoding import windowed

                pixels = windowed(pixels, self._decode.window)
            return Image(pixels, ResizeTransform.of(*pixels.shape[:2]))
        encoded = Encoded(image or b"", self._colour, self._dtype, self._max_pixels)
        return self._decode(encoded, _NO_OVERRIDES)

    def _check_pixels(self, pixels: NDArray[Any]) -> None:
        if pixels.dtype != _NUMPY[self._dtype]:
            raise BadImageError(f"PIXELS has dtype {str(pixels.dtype)!r}; allowed is {self._dtype}")
        if pixels.ndim != 3 or pixels.shape[2] != self._channels or not pixels.size:
            raise BadImageError(
                f"PIXELS has shape {list(pixels.shape)}; allowed is [height, width, {self._channels}] ({self._colour})"
            )
        height, width, _ = pixels.shape
        if height * width > self._max_pixels:
            raise BadImageError(
                f"PIXELS has {width} x {height} = {height * width} pixels; "
                f"allowed are 1 to {self._max_pixels} (input.maxPixels)"
            )

    def _tensor(self, value: Image) -> NDArray[Any]:
        height, width, _ = value.pixels.shape
        if self._height not in (None, height) or self._width not in (None, width):
            raise BadImageError(
                f"image of {value.transform.width} x {value.transform.height} pixels makes an input of "
                f"{width} x {height}; the network's {self._network!r} is "
                f"{self._width or 'any'} x {self._height or 'any'} (width x height)"
            )
        pixels = value.pixels
        if self._is_reversed:  # as late as here: what else reads pixels takes them as RGB
            import cv2

            pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
        if self._normalise is not None:  # in one pass with the axes' order and the type
            half = self._network_dtype is np.float16
            return self._normalise.tensor(pixels, half=half, channels_first=self._channels_first)
        pixels = np.ascontiguousarray(pixels)
        return _planes(pixels) if self._channels_first else pixels


def _planes(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels (H, W, C) as C-contiguous (C, H, W): OpenCV does it ten times faster than numpy."""
    height, width, channels = pixels.shape
    if channels == 1:
        return pixels.reshape(1, height, width)
    import cv2

    out = np.empty((channels, height, width), pixels.dtype)
    cv2.split(pixels, list(out))
    return out
