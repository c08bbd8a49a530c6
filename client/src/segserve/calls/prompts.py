"""Prompts about one image: points and boxes, and the request that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve_common.errors import BadRequestError
from segserve_common.kserve import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Click:
    """A point of the object, or of the background, in pixels of the image."""

    x: float
    y: float
    foreground: bool = True

    def __post_init__(self) -> None:
        _check_numbers("a click", self.x, self.y)


@dataclass(frozen=True, slots=True)
class Box:
    """A box around the object, in pixels of the image, as COCO writes it: its left top corner, width and height."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        _check_numbers("a box", self.x, self.y, self.width, self.height)
        if not (self.width > 0 and self.height > 0):
            raise BadRequestError(f"a box needs a width and height above 0, got {self.width} x {self.height}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The clicks and the box of one object, for a request about an image.

    `session` is the id by which a gateway sends all requests about an image to one server; `embedding` is the image's
    id there, empty if it has none yet. With `multimask` an answer has several masks, of different extent.
    """

    session: str
    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    multimask: bool = False
    embedding: str = ""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the inputs beside the image."""
        found = []
        if self.clicks:
            points = np.array([(each.x, each.y) for each in self.clicks], np.float32)
            labels = np.array([each.foreground for each in self.clicks], np.int32)
            found += [Tensor.of_array("POINTS", points), Tensor.of_array("POINT_LABELS", labels)]
        if (box := self.box) is not None:
            corners = np.array([[box.x, box.y, box.x + box.width, box.y + box.height]], np.float32)
            found.append(Tensor.of_array("PROMPT_BOXES", corners))
        return tuple(found)

    def known_image(self) -> Tensor | None:
        """Return the input with the image's id in place of the image; None without an id."""
        return Tensor.of_items("EMBEDDING", [self.embedding.encode()]) if self.embedding else None

    def parameters(self) -> dict[str, Parameter]:
        """Return the request parameters."""
        return {"multimask": True} if self.multimask else {}


def read_prompts(
    points: Iterable[str], others: Iterable[str], box: str | None, *, prefix: str = ""
) -> list[Click | Box]:
    """Return the prompts of `X,Y` for points of the object and others, and of `X,Y,WIDTH,HEIGHT`.

    `prefix` begins the names of options in errors. Raises `BadRequestError` for other texts.
    """

    def numbers(option: str, text: str, form: str) -> list[float]:
        try:
            found = [float(number) for number in text.split(",")]
        except ValueError:
            found = []
        if len(found) != len(form.split(",")):
            raise BadRequestError(f"{prefix}{option} is {text!r}; allowed: {form}, in pixels of the image")
        return found

    clicks = [Click(x, y) for x, y in (numbers("point", text, "X,Y") for text in points)]
    clicks += [Click(x, y, foreground=False) for x, y in (numbers("background", text, "X,Y") for text in others)]
    return [*clicks, *([Box(*numbers("box", box, "X,Y,WIDTH,HEIGHT"))] if box else [])]


def _check_numbers(what: str, *numbers: Any) -> None:
    if not all(isinstance(each, int | float | np.number) and math.isfinite(each) for each in numbers):
        raise BadRequestError(f"{what} needs finite numbers, got {', '.join(map(repr, numbers))}")
