"""The comparator: takes copies, asks both groups, and counts."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import ValidationError

from segserve_builder.comparator.copies import RequestCopy, model_of, read_copy
from segserve_builder.comparator.folder import COMPARISONS, ComparatorFolder, Comparison
from segserve_builder.comparator.groups import Answer, AnswerKind
from segserve_builder.comparator.http_server import ByteBudget, HttpReply, ReceivedRequest
from segserve_builder.comparator.pacing import Pacing
from segserve_builder.comparator.tally import PairTally

Ask: TypeAlias = Callable[[RequestCopy, str], Awaitable[Answer]]
"""Asks a group, by its name, a copy."""

PAIRS_PER_MODEL: Final = 4
PAIRS: Final = 8
"""Pairs under way at once, of a model and of all."""
WAITING_PER_MODEL: Final = 16
WARM_UP_PAIRS: Final = 20
WARM_UP_S: Final = 20.0
REFRESH_S: Final = 0.2
MAX_COMPARISONS_BYTES: Final = 2**20
_TAKEN: Final = HttpReply(204)
_TAKEN_GRPC: Final = HttpReply(200, headers={"content-type": "application/grpc", "grpc-status": "0"})

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _ComparedModel:
    comparison: Comparison
    tally: PairTally
    pacing: Pacing
    waiting: deque[RequestCopy] = field(default_factory=deque)
    pairs: set[asyncio.Task[None]] = field(default_factory=set)
    asked: int = 0
    first_asked_s: float = 0.0

    def is_warm(self, now_s: float) -> bool:
        """Tell whether the pair that is about to be asked counts, and count it among those asked."""
        if not self.asked:
            self.first_asked_s = now_s
        self.asked += 1
        return self.asked > WARM_UP_PAIRS or now_s - self.first_asked_s >= WARM_UP_S


class Comparator:
    """Asks two groups the copies of a model's requests while `comparisons.json` names them.

    A copy is dropped where the model's rate is reached, where too many wait, and where it continues a stream. The first
    pairs of a comparison only warm the candidate up, and are not counted: at most `WARM_UP_PAIRS`, in at most
    `WARM_UP_S`. What is kept of a model is forgotten with its comparison, and the next one counts from zero. `budget`
    holds the bodies of copies, which are taken from it before they come here.
    """

    def __init__(
        self,
        folder: ComparatorFolder,
        ask: Ask,
        budget: ByteBudget,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._ask = ask
        self._budget = budget
        self._monotonic_s = monotonic_s
        self._version: tuple[int, ...] | None = None
        self._models: dict[str, _ComparedModel] = {}
        self._pairs: set[asyncio.Task[None]] = set()

    async def follow(self) -> None:
        """Read the comparisons again whenever they are replaced, for ever."""
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def close(self) -> None:
        """End all pairs."""
        for model in tuple(self._models):
            self._forget(model)
        await asyncio.gather(*self._pairs, return_exceptions=True)

    def take(self, request: ReceivedRequest) -> HttpReply:
        """Take a copy; it is asked later, if at all."""
        if request.body is None:
            self._count_dropped(model_of(request))
            return _TAKEN
        size = len(request.body)
        copy = read_copy(request)
        self.refresh()
        model = self._models.get(copy.model) if copy is not None else None
        if copy is None or model is None or not self._admit(model, copy):
            self._budget.give_back(size)
        else:
            # The frame of a message is not kept.
            self._budget.give_back(size - len(copy.body))
            model.waiting.append(copy)
            self._start_pairs()
        return _TAKEN if copy is None or copy.protocol == "http" else _TAKEN_GRPC

    def control(self, request: ReceivedRequest) -> HttpReply:
        """Answer a question of the gateway's side."""
        url = urlsplit(request.target)
        if request.method != "GET":
            return HttpReply(405)
        match url.path:
            case "/live":
                return HttpReply(200)
            case "/pairs":
                self.refresh()
                pairs = {name: model.tally.to_json() for name, model in self._models.items()}
                return HttpReply(200, json.dumps(pairs).encode(), {"content-type": "application/json"})
            case _:
                return HttpReply(404)

    def refresh(self) -> None:
        """Read the comparisons if they were replaced since."""
        version = self._current_version()
        if version == self._version:
            return
        comparisons = self._read()
        self._version = version
        for name, model in tuple(self._models.items()):
            comparison = comparisons.get(name)
            groups = (model.comparison.stable, model.comparison.candidate)
            if comparison is None or (comparison.stable, comparison.candidate) != groups:
                self._forget(name)
            else:
                model.comparison = comparison
                model.pacing.requests_per_s = comparison.requests_per_s
        for name in comparisons.keys() - self._models.keys():
            self._begin(name, comparisons[name])

    def _current_version(self) -> tuple[int, ...] | None:
        try:
            status = self._folder.comparisons.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def _read(self) -> dict[str, Comparison]:
        """Return the comparisons; none of a file that is missing or damaged: what is asked must be meant."""
        try:
            with self._folder.comparisons.open("rb") as file:
                return COMPARISONS.validate_json(file.read(MAX_COMPARISONS_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            _log.warning("nothing is compared: %s cannot be read: %s", self._folder.comparisons.name, error)
            return {}

    def _begin(self, name: str, comparison: Comparison) -> None:
        epoch = f"{time.time_ns()}:{comparison.stable}:{comparison.candidate}"
        tally = PairTally(epoch, comparison.stable, comparison.candidate)
        self._models[name] = _ComparedModel(comparison, tally, Pacing(comparison.requests_per_s))
        _log.info("%s: comparing %s with %s", name, comparison.candidate, comparison.stable)

    def _forget(self, name: str) -> None:
        model = self._models.pop(name)
        for copy in model.waiting:
            self._budget.give_back(len(copy.body))
        for pair in model.pairs:
            pair.cancel()
        _log.info("%s: no longer comparing %s", name, model.comparison.candidate)

    def _count_dropped(self, name: str | None) -> None:
        if name is not None and name in self._models:
            self._models[name].tally.dropped += 1

    def _admit(self, model: _ComparedModel, copy: RequestCopy) -> bool:
        has_room = len(model.waiting) < WAITING_PER_MODEL
        if not copy.in_stream and has_room and model.pacing.admits(self._monotonic_s()):
            return True
        model.tally.dropped += 1
        return False

    def _start_pairs(self) -> None:
        for model in self._models.values():
            while model.waiting and len(model.pairs) < PAIRS_PER_MODEL and len(self._pairs) < PAIRS:
                self._start_pair(model, model.waiting.popleft())

    def _start_pair(self, model: _ComparedModel, copy: RequestCopy) -> None:
        pair = asyncio.create_task(self._ask_both(model, copy, counts=model.is_warm(self._monotonic_s())))
        for pairs in (model.pairs, self._pairs):
            pairs.add(pair)

        def end(_: asyncio.Task[None]) -> None:
            self._budget.give_back(len(copy.body))
            model.pairs.discard(pair)
            self._pairs.discard(pair)
            self._start_pairs()

        pair.add_done_callback(end)

    async def _ask_both(self, model: _ComparedModel, copy: RequestCopy, *, counts: bool) -> None:
        groups = [model.comparison.stable, model.comparison.candidate]
        order = random.sample((0, 1), 2)
        # Both are on their way before one of them answers; who is sent first is left to chance.
        asked = [asyncio.ensure_future(self._ask(copy, groups[side])) for side in order]
        try:
            answers = await asyncio.gather(*asked)
        except Exception:
            _log.exception("a pair was not asked")
            return
        finally:
            for each in asked:
                each.cancel()
        stable, candidate = (answers[order.index(side)] for side in (0, 1))
        if AnswerKind.HUNG in (stable.kind, candidate.kind):
            model.pacing.slow_down()
        if stable.kind is not AnswerKind.HUNG and stable.has_latency:
            model.pacing.learn(stable.seconds)
        if counts:
            model.tally.count(stable, candidate)
