"""The comparator: takes copies, queries both groups, and keeps the results of each compared model.

It sends few copies at first, and more as long as they do not slow the stable revision down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final, NamedTuple, Protocol, cast
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from segserve_builder.comparator.comparing import AnswerComparison
from segserve_builder.comparator.folder import COMPARISONS, ComparatorFolder, Comparison
from segserve_builder.comparator.kept import KeptSheet, KeptSheets
from segserve_builder.comparator.tally import PairTally
from segserve_builder.copies.copies import RequestCopy, image_digest, model_of, read_copy
from segserve_builder.copies.groups import Answer, AnswerKind, AskGroup
from segserve_builder.copies.http_server import ByteBudget, HttpReply, ReceivedRequest

FIRST_PER_S: Final = 1.0
FEW: Final = 9
"""Stable's times whose median says whether more copies may be sent."""
SLOWER: Final = 1.5
"""Largest ratio to stable's median while only few copies were sent: other callers of stable wait as long."""
NOISE_S: Final = 0.005
"""Medians that differ by less say nothing."""
SMALLEST_SHARE: Final = 1 / 64
WARM_UP_PAIRS: Final = 20
WARM_UP_S: Final = 20.0
MAX_BASELINES: Final = 200
BASELINE_INTERVAL: Final = 3
"""One of so many copies is sent to stable twice, and all while the candidate warms up, until there are enough."""
MOST_PAIRS: Final = 8
"""The same as `sheet.MOST_PAIRS`, whose module needs numpy; this process does not."""


@dataclass(slots=True)
class Pacing:
    """A token bucket of at most `requests_per_s`, full after a second; it begins with one request.

    It admits `FIRST_PER_S` until `FEW` times of stable are known, which are the measure of later ones. After each `FEW`
    more it admits twice as many if their median is at most `SLOWER` times the measure, else half as many. Pairs that
    hang also halve it. If stable is slow although hardly any copies are sent, these are not the cause: its present time
    is then the measure. `now_s` is of any clock that never runs back.
    """

    requests_per_s: float
    share: float = field(init=False)
    """Part of `requests_per_s` that is admitted now."""
    _tokens: float = 1.0
    _updated_s: float | None = None
    _calm_s: float | None = None
    _times_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # At a rate that is not a number, nothing is sent.
        self.share = min(FIRST_PER_S / self.requests_per_s, 1.0) if self.requests_per_s > 0 else 1.0

    def admits(self, now_s: float) -> bool:
        """Return whether a request may be sent now, and count it if so."""
        elapsed_s = 0.0 if self._updated_s is None else max(now_s - self._updated_s, 0.0)
        self._updated_s = now_s
        rate = self.requests_per_s * self.share
        self._tokens = min(self._tokens + elapsed_s * rate, max(rate, 1.0))
        if not self._tokens >= 1.0:
            return False
        self._tokens -= 1.0
        return True

    def learn(self, stable_s: float) -> None:
        """Learn how long stable took for its half of a pair."""
        self._times_s.append(stable_s)
        if len(self._times_s) < FEW:
            return
        present_s = median(self._times_s)
        self._times_s.clear()
        if self._calm_s is None or (self.share <= SMALLEST_SHARE and self._is_slow(present_s)):
            self._calm_s = present_s
        if self._is_slow(present_s):
            self.slow_down()
        else:
            self.share = min(self.share * 2, 1.0)

    def slow_down(self) -> None:
        """Halve the rate."""
        self.share = max(self.share / 2, SMALLEST_SHARE)
        self._times_s.clear()

    def _is_slow(self, present_s: float) -> bool:
        return self._calm_s is not None and present_s > SLOWER * self._calm_s + NOISE_S


class KeptPair(NamedTuple):
    """A pair for the sheet, as JSON; `image` is a digest of the image that was sent."""

    agreement: float
    shown: bytes
    image: bytes


@dataclass(slots=True)
class ComparedModel:
    """A model whose revisions are compared: the comparison, what waits and is under way, and what has come of it."""

    comparison: Comparison
    tally: PairTally
    pacing: Pacing
    waiting: deque[RequestCopy] = field(default_factory=deque)
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    """Pairs that were not answered yet."""
    pairs: set[asyncio.Task[None]] = field(default_factory=set)
    asked: int = 0
    first_asked_s: float = 0.0
    compared: int = 0
    kept: list[KeptPair] = field(default_factory=list)
    """The pairs that agree least, the least first."""
    baselines: int = 0
    """Copies that were sent to stable twice."""

    def is_warm(self, now_s: float) -> bool:
        """Return whether the pair that is about to be sent counts, and count it as sent.

        The first `WARM_UP_PAIRS` do not count, or the pairs of the first `WARM_UP_S`, whichever is less.
        """
        if not self.asked:
            self.first_asked_s = now_s
        self.asked += 1
        return self.asked > WARM_UP_PAIRS or now_s - self.first_asked_s >= WARM_UP_S

    def is_baseline(self, *, counts: bool) -> bool:
        """Return whether the copy is for a comparison of stable with itself, and count it if so."""
        due = not counts or self.asked % BASELINE_INTERVAL == 0
        if not self.comparison.has_baseline or self.baselines >= MAX_BASELINES or not due:
            return False
        self.baselines += 1
        return True

    @property
    def keep_below(self) -> float:
        """The agreement of a pair that is worth keeping; equal answers have nothing to show."""
        return self.kept[-1].agreement if len(self.kept) == MOST_PAIRS else 1.0

    def sheet(self, name: str) -> KeptSheet:
        """Return the sheet of what is compared of the model `name`."""
        shown = [pair.shown for pair in self.kept]
        return KeptSheet(name, self.tally.stable, self.tally.candidate, self.compared, shown)

    def keep(self, pair: KeptPair) -> None:
        """Keep a pair among those that agree least, one of each image."""
        same = next((kept for kept in self.kept if kept.image == pair.image), None)
        if same is not None and same.agreement <= pair.agreement:
            return
        self.kept = [kept for kept in self.kept if kept is not same]
        insort(self.kept, pair, key=lambda kept: kept.agreement)
        del self.kept[MOST_PAIRS:]


class Compare(Protocol):
    """Measures how much two answers agree, as `AnswerComparer.compare` does."""

    async def __call__(
        self, copy: RequestCopy, stable: Answer, candidate: Answer, *, keep_below: float
    ) -> AnswerComparison | None:
        """Return the agreement, and a pair of a sheet if it is less than `keep_below`."""


PAIRS_PER_MODEL: Final = 4
PAIRS: Final = 8
"""Pairs under way at once, of a model and of all."""
WAITING_PER_MODEL: Final = 16
REFRESH_S: Final = 0.2
MAX_COMPARISONS_BYTES: Final = 2**20
SHEET_BYTES: Final = 64 * 2**20
"""Bytes of the kept pairs of all models."""
_TAKEN: Final = HttpReply(204)
_TAKEN_GRPC: Final = HttpReply(200, headers={"content-type": "application/grpc", "grpc-status": "0"})

_log = logging.getLogger(__name__)


class Comparator:
    """Sends the copies of a model's requests to two groups while `comparisons.json` names them.

    If a comparison requires it, some copies are sent to stable twice instead.

    A copy is dropped where the model's rate is reached, where too many wait, and where it continues a stream. The first
    pairs of a comparison only warm the candidate up, and are not counted (`ComparedModel.is_warm`). What is kept of a
    model is forgotten with its comparison, and the next one counts from zero; where the comparisons say that one has
    ended, its sheet is kept for `KEPT_S`. `budget` holds the bodies of copies, which are taken from it before they come
    here.
    """

    def __init__(
        self,
        folder: ComparatorFolder,
        ask: AskGroup,
        compare: Compare,
        budget: ByteBudget,
        *,
        pace: Callable[[float], Pacing] = Pacing,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._ask = ask
        self._compare = compare
        self._budget = budget
        self._pace = pace
        self._monotonic_s = monotonic_s
        self._version: tuple[int, ...] | None = None
        self._models: dict[str, ComparedModel] = {}
        self._ended = KeptSheets()
        self._pairs: set[asyncio.Task[None]] = set()

    async def follow(self) -> None:
        """Read the comparisons again whenever they are replaced, forever."""
        while True:
            self.refresh()
            self._ended.forget_old(self._monotonic_s())
            await asyncio.sleep(REFRESH_S)

    async def close(self) -> None:
        """End all pairs."""
        for model in tuple(self._models):
            self._forget(model)
        self._ended.forget_others(())
        await asyncio.gather(*self._pairs, return_exceptions=True)

    def take(self, request: ReceivedRequest) -> HttpReply:
        """Take a copy; it is sent later, if at all."""
        if request.body is None:
            name = model_of(request)
            if name is not None and name in self._models:
                self._models[name].tally.dropped += 1
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
            case "/sheet":
                name = parse_qs(url.query).get("model", [""])[0]
                self.refresh()
                self._ended.forget_old(self._monotonic_s())
                model = self._models.get(name)
                sheet = model.sheet(name) if model is not None else self._ended.get(name)
                if sheet is None:
                    return HttpReply(404)
                return HttpReply(200, sheet.to_json(), {"content-type": "application/json"})
            case _:
                return HttpReply(404)

    def show(self, request: ReceivedRequest) -> HttpReply:
        """Answer a query of a user who may see callers' images, and no other query."""
        is_sheet = urlsplit(request.target).path == "/sheet"
        return self.control(request) if is_sheet else HttpReply(404)

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
                self._forget(name, keep=name in comparisons and comparison is None)
            else:
                model.comparison = comparison
                model.pacing.requests_per_s = comparison.requests_per_s
        self._ended.forget_others([name for name, comparison in comparisons.items() if comparison is None])
        for name, comparison in comparisons.items():
            if comparison is not None and name not in self._models:
                epoch = f"{time.time_ns()}:{comparison.stable}:{comparison.candidate}"
                tally = PairTally(epoch, comparison.stable, comparison.candidate)
                self._models[name] = ComparedModel(comparison, tally, self._pace(comparison.requests_per_s))
                _log.info("%s: comparing %s with %s", name, comparison.candidate, comparison.stable)

    def _current_version(self) -> tuple[int, ...] | None:
        try:
            status = self._folder.comparisons.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def _read(self) -> dict[str, Comparison | None]:
        """Return the comparisons; none if the file is missing or damaged: nothing is sent unintended."""
        try:
            with self._folder.comparisons.open("rb") as file:
                return COMPARISONS.validate_json(file.read(MAX_COMPARISONS_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            _log.warning("nothing is compared: %s cannot be read: %s", self._folder.comparisons.name, error)
            return {}

    def _forget(self, name: str, *, keep: bool = False) -> None:
        model = self._models.pop(name)
        if keep:
            self._ended.add(replace(model.sheet(name), ended_at_s=time.time(), since_s=self._monotonic_s()))
        for copy in model.waiting:
            self._budget.give_back(len(copy.body))
        for pair in model.pairs:
            pair.cancel()
        _log.info("%s: no longer comparing %s", name, model.comparison.candidate)

    def _admit(self, model: ComparedModel, copy: RequestCopy) -> bool:
        has_room = len(model.waiting) < WAITING_PER_MODEL
        if not copy.in_stream and has_room and model.pacing.admits(self._monotonic_s()):
            return True
        model.tally.dropped += 1
        return False

    def _start_pairs(self) -> None:
        under_way = sum(len(model.under_way) for model in self._models.values())
        for model in self._models.values():
            while model.waiting and len(model.under_way) < PAIRS_PER_MODEL and under_way < PAIRS:
                self._start_pair(model, model.waiting.popleft())
                under_way += 1

    def _start_pair(self, model: ComparedModel, copy: RequestCopy) -> None:
        def end() -> None:
            # One that is cancelled before it began has done nothing of this itself.
            model.under_way.discard(pair)
            self._budget.give_back(len(copy.body))
            self._start_pairs()

        pair = self._start(model, self._pair(model, copy, counts=model.is_warm(self._monotonic_s())), end)
        model.under_way.add(pair)

    def _start(
        self, model: ComparedModel, work: Coroutine[Any, Any, None], end: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Start work that ends with the comparison; `end` is called even if it never began."""
        task = asyncio.create_task(work)
        for tasks in (model.pairs, self._pairs):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: end())
        return task

    async def _pair(self, model: ComparedModel, copy: RequestCopy, *, counts: bool) -> None:
        try:
            if model.is_baseline(counts=counts):
                await self._compare_stable(model, copy, warms=not counts)
                return
            stable, candidate = await self._ask_both(model, copy)
            if counts:
                model.tally.count(stable, candidate)
            self._make_room(model)
            if counts and stable.kind is candidate.kind is AnswerKind.ANSWERED:
                await self._compare_answers(model, copy, stable, candidate)
        except Exception:
            _log.exception("a pair was not counted")

    def _make_room(self, model: ComparedModel) -> None:
        """Let the next copies be sent while this one's answers are compared."""
        model.under_way.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        self._start_pairs()

    async def _compare_stable(self, model: ComparedModel, copy: RequestCopy, *, warms: bool) -> None:
        """Compare two answers of stable; if it `warms`, the candidate also gets a copy, and its answer is ignored."""
        comparison = model.comparison
        groups = [comparison.stable, comparison.stable, *([comparison.candidate] if warms else [])]
        asked = [asyncio.ensure_future(self._ask(copy, group)) for group in groups]
        try:
            first, second = (await asyncio.gather(*asked))[:2]
        finally:
            for each in asked:
                each.cancel()
        self._learn(model, first, second)
        self._make_room(model)
        if first.kind is second.kind is AnswerKind.ANSWERED:
            compared = await self._compare(copy, first, second, keep_below=0.0)
            if compared is not None:
                model.tally.count_baseline(1 - compared.agreement)

    async def _ask_both(self, model: ComparedModel, copy: RequestCopy) -> tuple[Answer, Answer]:
        groups = [model.comparison.stable, model.comparison.candidate]
        order = random.sample((0, 1), 2)
        # Both are on their way before one of them answers; their order is random.
        asked = [asyncio.ensure_future(self._ask(copy, groups[side])) for side in order]
        try:
            answers = await asyncio.gather(*asked)
        finally:
            for each in asked:
                each.cancel()
        stable, candidate = (answers[order.index(side)] for side in (0, 1))
        self._learn(model, stable, candidate)
        return stable, candidate

    def _learn(self, model: ComparedModel, stable: Answer, other: Answer) -> None:
        if AnswerKind.HUNG in (stable.kind, other.kind):
            model.pacing.slow_down()
        if stable.has_latency:
            model.pacing.learn(stable.seconds)

    async def _compare_answers(
        self, model: ComparedModel, copy: RequestCopy, stable: Answer, candidate: Answer
    ) -> None:
        compared = await self._compare(copy, stable, candidate, keep_below=model.keep_below)
        if compared is None:
            return
        agreement, shown, shift = compared
        model.compared += 1
        model.tally.count_disagreement(1 - agreement)
        if shift is not None:
            model.tally.count_shift(shift)
        if shown and agreement < model.keep_below:
            model.keep(KeptPair(agreement, shown, image_digest(copy)))
            self._forget_beyond(SHEET_BYTES)

    def _forget_beyond(self, limit: int) -> None:
        """Forget pairs until the rest has so many bytes: first of ended comparisons, then those that agree most."""
        while self._kept_bytes() > limit:
            if self._ended.forget_one():
                continue
            fullest = max((model for model in self._models.values() if model.kept), key=lambda m: m.kept[-1].agreement)
            fullest.kept.pop()

    def _kept_bytes(self) -> int:
        under_way = sum(len(pair.shown) for model in self._models.values() for pair in model.kept)
        return under_way + sum(sheet.size for sheet in self._ended)
