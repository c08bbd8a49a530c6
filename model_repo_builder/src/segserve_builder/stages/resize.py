"""The stage that fits an image to the network's input, and keeps where it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from segserve_builder.errors import BadImageError
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Image, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Mode = Literal["stretch", "letterbox", "shortSide", "keep"]

_PADS: Final = frozenset({"multipleOf", "padValue"})
_NEEDED: Final[Mapping[Mode, tuple[frozenset[str], ...]]] = {
    "stretch": (frozenset({"height", "width"}),),
    "letterbox": (frozenset({"size"}), frozenset({"height", "width"})),
    "shortSide": (frozenset({"size", "maxSize"}),),
    "keep": (frozenset(),),
}
_OPTIONAL: Final[Mapping[Mode, frozenset[str]]] = {
    "stretch": frozenset(),
    "letterbox": _PADS,
    "shortSide": _PADS,
    "keep": _PADS,
}
_LETTERBOX_GREY: Final = 114
_PADDED_PIXELS: Final = 2**26


class Resize(Stage):
    """Fit the image to the network: stretch, letterbox, shortSide or keep.

    - `stretch`: to `height` x `width`, whatever the aspect ratio.
    - `letterbox`: as large as fits into `size` x `size` (or `height` x `width`), centred, the rest padded
      with `padValue`, by default 114 (UINT16: 114 * 257); with `multipleOf` only to the next multiple of it. The
      arithmetic is that of ultralytics' LetterBox, without and with its `auto`.
    - `shortSide`: the shorter side to `size`, or less so that the longer is at most `maxSize`. The arithmetic
      is that of detectron2's ResizeShortestEdge.
    - `keep`: the image's own size.
    - `shortSide` and `keep` pad bottom and right to a multiple of `multipleOf`, with `padValue`, by default 0.

    Sizes are in pixels; no side becomes less than 1. Interpolation is OpenCV's; `nearest` takes the pixel at
    floor(i * old / new), as torch's `nearest` does. With `antialias` it is that of torch's `interpolate` and
    torchvision's and Pillow's `resize`: where the image shrinks, every pixel counts. It matters which of the two a
    network was trained with.

    `rounding` is `once` for whole numbers, half to even with `antialias`; `eachPass`, half up along rows and again
    along columns, as torchvision and transformers do with bytes, and Pillow but for a grey level in few pixels; `none`
    for float32, as torch's `interpolate` of a float tensor. The last needs UINT8 and `normalise`.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.IMAGE})

    mode: Mode = Field(description="stretch, letterbox, shortSide or keep.")
    height: int | None = Field(None, ge=1, le=16384, description="stretch, letterbox: height of the result in pixels.")
    width: int | None = Field(None, ge=1, le=16384, description="stretch, letterbox: width of the result in pixels.")
    size: int | None = Field(
        None,
        ge=1,
        le=16384,
        description="letterbox: height and width in pixels; shortSide: length of the shorter side.",
    )
    max_size: int | None = Field(
        None, ge=1, le=16384, description="shortSide: largest length of the longer side in pixels."
    )
    multiple_of: int | None = Field(
        None,
        ge=1,
        le=16384,
        description="letterbox, shortSide, keep: number that both sides are padded to a multiple of.",
    )
    padding: Literal["constant", "edge", "zeros"] = Field(
        "constant",
        description="Padding with padValue, with the repeated edge, or with zeros of the normalised input, as "
        "segment-anything pads.",
    )
    pad_value: int | None = Field(
        None, ge=0, le=65535, description="Value of constant padding, in units of the decoded pixels."
    )
    interpolation: Literal["bilinear", "area", "nearest", "cubic"] = Field(
        "bilinear", description="Interpolation method."
    )
    antialias: bool | None = Field(
        None,
        description="bilinear, cubic: whether shrinking averages all pixels, as torchvision and Pillow do. "
        "Default: false, as OpenCV does.",
    )
    rounding: Literal["once", "eachPass", "none"] | None = Field(
        None,
        description="Rounding to whole numbers: eachPass (with antialias), as torchvision of bytes; none (without), as "
        "torch of float tensors. Default: once.",
    )

    @model_validator(mode="after")
    def _fits_its_mode(self) -> Self:
        given = {
            self.__class__.model_fields[name].alias or name
            for name in ("height", "width", "size", "max_size", "multiple_of", "pad_value")
            if getattr(self, name) is not None
        }
        choices, optional = _NEEDED[self.mode], _OPTIONAL[self.mode]
        if not any(needed <= given <= needed | optional for needed in choices):
            needs = " or ".join(" and ".join(sorted(needed)) for needed in choices)
            takes = ", ".join(sorted(optional))
            raise ValueError(
                f"resize mode {self.mode!r} needs {needs or 'nothing'} and may have "
                f"{takes or 'nothing more'}; got {', '.join(sorted(given)) or 'none'}"
            )
        if self.padding != "constant" and self.pad_value is not None:
            raise ValueError(f"padValue needs padding: constant; got {self.padding}")
        if self.antialias and self.interpolation not in ("bilinear", "cubic"):
            raise ValueError(f"antialias needs interpolation: bilinear or cubic; got {self.interpolation}")
        if self.rounding == "eachPass" and not self.antialias:
            raise ValueError("rounding: eachPass needs antialias: true; without it there is one pass")
        if self.rounding == "none" and self.antialias:
            raise ValueError("rounding: none needs antialias: false; with it allowed are once and eachPass")
        if self.mode == "letterbox" and any(side % (self.multiple_of or 1) for side in self._most or ()):
            raise ValueError(f"the sides of letterbox must be multiples of multipleOf ({self.multiple_of})")
        if self.max_size is not None and self.size is not None and self.max_size < self.size:
            raise ValueError(f"maxSize must be at least size ({self.size}), got {self.max_size}")
        return self

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The height and width of every result, or None where they depend on the image."""
        return None if self.multiple_of is not None else self._most

    @property
    def _most(self) -> tuple[int, int] | None:
        """The height and width that stretch gives, and that letterbox fits images into."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        return (self.size, self.size) if self.mode == "letterbox" and self.size is not None else None

    def place(self, height: int, width: int) -> ResizeTransform:
        """Return where an image of this size comes to lie."""
        whole = ResizeTransform.of(height, width)
        if self._most is None:
            inner = (
                (height, width)
                if self.size is None
                else _short_side(height, width, self.size, self.max_size or self.size)
            )
            return _padded(whole, inner, self.multiple_of or 1)
        if self.mode == "letterbox":
            return _letterboxed(whole, *self._most, self.multiple_of)
        return ResizeTransform(height, width, 0, 0, *self._most, *self._most)

    def __call__(self, value: Image, request: RequestOptions) -> Image:
        """Return the fitted image, (H, W, C) of the same dtype; the given one where nothing changes.

        Without rounding, pixels of images that change their size are float32.
        """
        transform = self.place(*value.pixels.shape[:2])
        if transform == value.transform:
            return value
        area = transform.input_height * transform.input_width
        allowed = max(_PADDED_PIXELS, 2 * transform.inner_height * transform.inner_width)
        if area > allowed:
            raise BadImageError(
                f"image of {transform.width} x {transform.height} pixels would be padded to "
                f"{transform.input_width} x {transform.input_height}; allowed are {allowed} pixels"
            )
        if self.pad_value is not None:
            constant = self.pad_value
        elif self.mode != "letterbox":
            constant = 0
        else:
            constant = _LETTERBOX_GREY if value.pixels.dtype.itemsize == 1 else _LETTERBOX_GREY * 257
        return Image(self._pad(self._resize(value.pixels, transform), transform, constant), transform)

    def _resize(self, pixels: NDArray[Any], transform: ResizeTransform) -> NDArray[Any]:
        inner = (transform.inner_height, transform.inner_width)
        if pixels.shape[:2] == inner:
            return pixels
        if self.antialias:
            from segserve_builder.kernels.resample import resample

            rounding: Literal["once", "eachPass"] = "eachPass" if self.rounding == "eachPass" else "once"
            return resample(pixels, *inner, "cubic" if self.interpolation == "cubic" else "bilinear", rounding)
        import cv2
        import numpy as np

        method = {
            "bilinear": cv2.INTER_LINEAR,
            "area": cv2.INTER_AREA,
            "nearest": cv2.INTER_NEAREST,
            "cubic": cv2.INTER_CUBIC,
        }[self.interpolation]
        given = np.ascontiguousarray(pixels, np.float32 if self.rounding == "none" else pixels.dtype)
        resized: NDArray[Any] = cv2.resize(given, inner[::-1], interpolation=method)
        return resized.reshape(*inner, pixels.shape[2])

    def _pad(self, pixels: NDArray[Any], transform: ResizeTransform, constant: int) -> NDArray[Any]:
        bottom = transform.input_height - transform.top - transform.inner_height
        right = transform.input_width - transform.left - transform.inner_width
        if not (transform.top or bottom or transform.left or right):
            return pixels
        import cv2
        import numpy as np

        border = cv2.BORDER_REPLICATE if self.padding == "edge" else cv2.BORDER_CONSTANT
        sides = (transform.top, bottom, transform.left, right)
        padded: NDArray[Any] = cv2.copyMakeBorder(
            np.ascontiguousarray(pixels), *sides, border, value=[constant] * pixels.shape[2]
        )
        return padded.reshape(transform.input_height, transform.input_width, pixels.shape[2])


def _letterboxed(whole: ResizeTransform, input_height: int, input_width: int, multiple: int | None) -> ResizeTransform:
    scale = min(input_height / whole.height, input_width / whole.width)
    inner_height = max(1, round(whole.height * scale))
    inner_width = max(1, round(whole.width * scale))
    if multiple is not None:
        input_height, input_width = inner_height + -inner_height % multiple, inner_width + -inner_width % multiple
    return replace(
        whole,
        # Minus 0.1: an odd rest goes to the bottom and right.
        top=max(0, round((input_height - inner_height) / 2 - 0.1)),
        left=max(0, round((input_width - inner_width) / 2 - 0.1)),
        inner_height=inner_height,
        inner_width=inner_width,
        input_height=input_height,
        input_width=input_width,
    )


def _short_side(height: int, width: int, size: int, max_size: int) -> tuple[int, int]:
    scale = size / min(height, width)
    new_height, new_width = (size, scale * width) if height < width else (scale * height, size)
    longer = max(new_height, new_width)
    if longer > max_size:
        new_height, new_width = new_height * (max_size / longer), new_width * (max_size / longer)
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def _padded(whole: ResizeTransform, inner: tuple[int, int], multiple: int) -> ResizeTransform:
    height, width = inner
    return replace(
        whole,
        inner_height=height,
        inner_width=width,
        input_height=height + -height % multiple,
        input_width=width + -width % multiple,
    )
