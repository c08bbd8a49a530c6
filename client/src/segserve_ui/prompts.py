"""Images in which clicks select objects, as long as the page or an annotation tool works on them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from segserve.calls.prompts import Box, Click
from segserve.client import Client
from segserve.prompted import PromptedImage
from segserve_common.errors import BadRequestError, SegserveError
from segserve_ui.answers import GoneAnswerError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGES, MAX_BYTES = 32, 256 * 2**20


@dataclass(frozen=True, slots=True)
class Prompts:
    """The clicks and the box of one object, as the page sends them."""

    given: tuple[Click | Box, ...] = ()
    multimask: bool = False

    def parameters(self) -> dict[str, str]:
        """Return the parameters of a plain HTTP request."""
        clicks = [each for each in self.given if isinstance(each, Click)]
        boxes = [
            (each.x, each.y, each.x + each.width, each.y + each.height) for each in self.given if isinstance(each, Box)
        ]
        found = {
            "points": ";".join(f"{each.x:g},{each.y:g}" for each in clicks),
            "point_labels": ";".join(str(int(each.foreground)) for each in clicks),
            "prompt_boxes": ";".join(",".join(f"{number:g}" for number in box) for box in boxes),
            "multimask": "true" * self.multimask,
        }
        return {name: text for name, text in found.items() if text}


class PromptedImages:
    """The images that were clicked on last, at most `MAX_IMAGES` and `MAX_BYTES`, only in memory. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[PromptedImage, Lock, int]] = OrderedDict()
        self._lock = Lock()

    def forget(self) -> None:
        """Forget all images: a client of theirs is closed."""
        with self._lock:
            self._kept.clear()

    @contextmanager
    def taken(
        self, name: Hashable, client: Client | None = None, model: str = "", content: bytes | Image = b""
    ) -> Iterator[PromptedImage]:
        """Have an image alone for the time of the block, without prompts; a client opens one that is not kept.

        Raises `GoneAnswerError` without a client, and as `Client.prompt` does. After another error than one of the
        prompts the image is forgotten: its gateway may be gone for good.
        """
        with self._lock:
            if name not in self._kept:
                if client is None:
                    raise GoneAnswerError("this image is no longer kept: open it again")
                size = len(content) if isinstance(content, bytes) else content.width * content.height * 4
                self._kept[name] = client.prompt(content, model=model), Lock(), size
            self._kept.move_to_end(name)
            image, turn, _ = self._kept[name]
            while len(self._kept) > MAX_IMAGES or sum(size for *_, size in self._kept.values()) > MAX_BYTES:
                self._kept.popitem(last=False)
        try:
            with turn:
                image.clear()
                yield image
        except BadRequestError:
            raise
        except SegserveError:
            with self._lock:
                self._kept.pop(name, None)
            raise
