"""Images that are segmented by prompts, one click after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self, TypeAlias
from uuid import uuid4

from segserve.calls.prompts import Box, Click, Prompt
from segserve.calls.steps import SegmentOptions
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from segserve.results.objects import InstanceResult

Answered: TypeAlias = "tuple[InstanceResult, str]"
"""The answer to a prompt, and the id of the image's embedding."""


class _Prompted:
    """The prompts of an image that count, and the answer to them, for both kinds of clients."""

    def __init__(self, options: SegmentOptions) -> None:
        self._options, self._session = options, f"prompt-{uuid4().hex}"
        self._given: tuple[Click | Box, ...] = ()
        self._embedding = ""
        self.result: InstanceResult | None = None
        """The answer to the last prompt; None before the image was sent."""

    @property
    def prompts(self) -> tuple[Click | Box, ...]:
        """The clicks and boxes in their order; of boxes the last one counts."""
        return self._given

    def clear(self) -> None:
        """Take all prompts back, for another object of the image."""
        self._given = ()

    def _without_last(self) -> tuple[Click | Box, ...]:
        if not self._given:
            raise BadRequestError("there is no click and no box to take back")
        return self._given[:-1]

    def _request(self, given: Sequence[Click | Box], *, multimask: bool = False) -> SegmentOptions:
        """Return the options of a request with some prompts."""
        prompt = Prompt(
            self._session,
            clicks=tuple(each for each in given if isinstance(each, Click)),
            # A box replaces an earlier one, which counts again once the later one is taken back.
            box=next((each for each in reversed(given) if isinstance(each, Box)), None),
            multimask=multimask,
            embedding=self._embedding,
        )
        return replace(self._options, prompt=prompt)

    def _keep(self, given: tuple[Click | Box, ...], answered: Answered) -> InstanceResult:
        self._given = given
        self.result, self._embedding = answered
        return self.result


class PromptedImage(_Prompted):
    """An image that clicks and boxes select objects in; made by `Client.prompt`. Not for several threads.

    All prompts since the last `clear` are of one object. Each answer has one instance with the mask, and the IoU that
    the network predicts as its score; none without a prompt. A server keeps the image's embedding, so that only the
    first request sends the image; if the server has lost it, the image is sent once more.
    """

    def __init__(self, options: SegmentOptions, ask: Callable[[SegmentOptions], Answered]) -> None:
        super().__init__(options)
        self._ask = ask

    def click(self, x: float, y: float, *, foreground: bool = True, multimask: bool = False) -> InstanceResult:
        """Add a point of the object, or of the background, and return the answer to all prompts.

        `x` and `y` are pixels of the image, from 0 to its width and height. With `multimask` the answer has several
        masks of different extent. Raises `BadRequestError` for a point outside, or another `SegserveError`; the point
        does not count then.
        """
        return self.ask(Click(x, y, foreground), multimask=multimask)

    def box(self, x: float, y: float, width: float, height: float, *, multimask: bool = False) -> InstanceResult:
        """Set the box around the object, in pixels of the image, and return the answer to all prompts; see `click`."""
        return self.ask(Box(x, y, width, height), multimask=multimask)

    def undo(self) -> InstanceResult:
        """Take the last prompt back, and return the answer to the others; `BadRequestError` if there is none."""
        return self._asked(self._without_last())

    def __enter__(self) -> Self:
        """Send the image, so that clicks do not wait for its embedding."""
        self._asked(self._given)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, *prompts: Click | Box, multimask: bool = False) -> InstanceResult:
        """Add several prompts, and return the answer to all; see `click`."""
        return self._asked((*self._given, *prompts), multimask=multimask)

    def _asked(self, given: tuple[Click | Box, ...], *, multimask: bool = False) -> InstanceResult:
        return self._keep(given, self._ask(self._request(given, multimask=multimask)))


class AsyncPromptedImage(_Prompted):
    """`PromptedImage` for the tasks of one event loop, one after the other; made by `AsyncClient.prompt`."""

    def __init__(self, options: SegmentOptions, ask: Callable[[SegmentOptions], Awaitable[Answered]]) -> None:
        super().__init__(options)
        self._ask = ask

    async def click(self, x: float, y: float, *, foreground: bool = True, multimask: bool = False) -> InstanceResult:
        """Add a point and return the answer to all prompts, as `PromptedImage.click` does."""
        return await self.ask(Click(x, y, foreground), multimask=multimask)

    async def box(self, x: float, y: float, width: float, height: float, *, multimask: bool = False) -> InstanceResult:
        """Set the box and return the answer to all prompts, as `PromptedImage.box` does."""
        return await self.ask(Box(x, y, width, height), multimask=multimask)

    async def undo(self) -> InstanceResult:
        """Take the last prompt back, as `PromptedImage.undo` does."""
        return await self._asked(self._without_last())

    async def __aenter__(self) -> Self:
        """Send the image, so that clicks do not wait for its embedding."""
        await self._asked(self._given)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ask(self, *prompts: Click | Box, multimask: bool = False) -> InstanceResult:
        """Add several prompts, and return the answer to all, as `PromptedImage.ask` does."""
        return await self._asked((*self._given, *prompts), multimask=multimask)

    async def _asked(self, given: tuple[Click | Box, ...], *, multimask: bool = False) -> InstanceResult:
        return self._keep(given, await self._ask(self._request(given, multimask=multimask)))
