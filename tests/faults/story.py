"""One rollout on a real platform under load, from the first answer of stable to the end, and what callers saw of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import yaml

from fakes.rollout_load import Call, RolloutLoad, p95_ms, pictures
from fakes.waiting import HANG_S, meanwhile
from faults.plan import Fault
from faults.platform import PATIENT_S, FaultyPlatform, faulty_platform, revision_of

Json = dict[str, Any]

BEFORE_S: Final = 20.0
LOOK_S: Final = 0.01
ENDED: Final = ("Succeeded", "RolledBack", "Cancelled", "Judged")
SHARING: Final = ("Progressing", "Quarantined", "Baking")
ASKED: Final = ("Shadow", *SHARING)
HELD: Final = "held"
LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Stage:
    """What the status said of a rollout, from the moment (Unix seconds) at which it was written."""

    at_s: float
    phase: str
    weight: int
    reason: str = ""
    message: str = ""


@dataclass
class Story:
    """A platform that serves `first`, callers, and the stages of the one rollout that follows.

    An answer that takes longer than `slow_ms` counts as a bad one.
    """

    first: Json
    rate: float
    pictures: Sequence[bytes] = field(default_factory=pictures, repr=False)
    slow_ms: float = float("inf")
    speed: float = 1.0
    """Of the clock by which decisions are made."""
    timeout_s: int = PATIENT_S
    stages: list[Stage] = field(default_factory=list)
    platform: FaultyPlatform = field(init=False)
    load: RolloutLoad = field(init=False)
    candidate: str = field(init=False, default="")

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.first["metadata"]["name"])

    @property
    def stable(self) -> str:
        """The revision that served first."""
        return revision_of(self.first)

    @contextmanager
    def begun(self) -> Iterator[Self]:
        """Serve, and let callers come, for the time of the block."""
        with ExitStack() as stack:
            self.platform = stack.enter_context(faulty_platform(self.first, timeout_s=self.timeout_s, speed=self.speed))
            load = RolloutLoad(self.platform.running.url, self.model, self.rate, pictures=self.pictures)
            self.load = stack.enter_context(load)
            yield self

    def play(
        self,
        second: Json,
        *,
        fault: Fault | None = None,
        at_once: bool = False,
        event: Callable[[Self], None] | None = None,
        limit_s: float,
    ) -> Json:
        """Apply the candidate, follow its rollout to its end or the limit, and return what was seen as JSON."""
        with self.begun():
            time.sleep(BEFORE_S)
            began_s = time.time()
            if fault is not None and at_once:
                self.platform.plan.set(**{revision_of(second): fault})
            self.apply(second)
            with self.watching():
                asked = self.reaches(*ASKED, *ENDED, within_s=limit_s)
                if fault is not None and not at_once:
                    self.platform.plan.set(**{self.candidate: fault})
                if event is not None and asked:
                    event(self)
                self.reaches(*ENDED, within_s=began_s + limit_s - time.time())
                time.sleep(2)  # for the requests under way
        return self.summary(began_s)

    def apply(self, manifest: Json) -> None:
        """Apply the candidate as a user does."""
        self.candidate = revision_of(manifest)
        self.platform.apply(manifest)

    # Following the status.

    def watching(self) -> AbstractContextManager[None]:
        """Note every stage of the rollout, with the time at which its file was written."""
        return meanwhile(self._watch)

    def reaches(self, *phases: str, within_s: float = HANG_S) -> Stage | None:
        """Return the first stage of one of these phases, once there is one; None after the time."""
        deadline_s = time.monotonic() + within_s
        while (found := self.first_of(*phases)) is None and time.monotonic() < deadline_s:
            time.sleep(LOOK_S)
        return found

    def first_of(self, *phases: str) -> Stage | None:
        """Return the first stage of one of these phases so far."""
        return next((stage for stage in list(self.stages) if stage.phase in phases), None)

    def _watch(self, ended: threading.Event) -> None:
        path = self.platform.running.state / f"objects/SegmentationModel/{self.model}/status.yaml"
        stamp = 0
        while not ended.wait(LOOK_S):
            with contextlib.suppress(FileNotFoundError):
                if (now := path.stat().st_mtime_ns) != stamp:
                    stamp = now
                    self._note(now / 1e9, (yaml.load(path.read_text(), LOADER) or {}).get("rollout") or {})

    def _note(self, at_s: float, said: Json) -> None:
        if said.get("revision") != self.candidate:
            return
        stage = Stage(at_s, said["phase"], said.get("weight", 0), said.get("reason", ""), said.get("message", ""))
        if not self.stages or (stage.phase, stage.weight) != (self.stages[-1].phase, self.stages[-1].weight):
            self.stages.append(stage)

    # What came of it.

    def bad(self) -> list[Call]:
        """Return the candidate's bad answers, by their end."""
        mine = self.load.of(self.candidate)
        return sorted(
            (call for call in mine if call.bad or call.latency_ms > self.slow_ms), key=lambda call: call.ended_s
        )

    def emptied(self, since_s: float) -> Stage | None:
        """Return the first stage after a moment at which the candidate has no share."""
        later = (stage for stage in list(self.stages) if stage.at_s >= since_s)
        return next(
            (stage for stage in later if stage.weight == 0 and stage.phase not in ("Baking", "Succeeded")), None
        )

    def summary(self, began_s: float) -> Json:
        """Return what was seen, as JSON; times are seconds."""
        mine, bad = self.load.of(self.candidate), self.bad()
        last = self.stages[-1] if self.stages else None
        outcome = HELD if last is None or last.phase not in ENDED else last.phase
        stable = self.load.of(self.stable)
        return {
            "outcome": outcome,
            "stages": [_told(stage, began_s) for stage in self.stages],
            "calls": len(self.load.calls),
            "of_the_candidate": len(mine),
            "bad_of_the_candidate": len(bad),
            "bad_of_stable": sum(call.bad for call in stable if call.began_s > began_s),
            "nobodys": sum(call.revision == "" for call in self.load.calls),
            "stable_p95_before_ms": _rounded(p95_ms(call for call in stable if call.began_s < began_s)),
            "stable_p95_during_ms": _rounded(p95_ms(self._beside(stable))),
            **self._times(mine, bad),
        }

    def _beside(self, calls: list[Call]) -> list[Call]:
        """Return the calls of the time in which the candidate had a share."""
        shared = [stage.at_s for stage in self.stages if stage.weight > 0]
        emptied = self.emptied(shared[0]) if shared else None
        until_s = emptied.at_s if emptied is not None else float("inf")
        return [call for call in calls if shared and shared[0] <= call.began_s <= until_s]

    def _times(self, mine: list[Call], bad: list[Call]) -> Json:
        emptied = self.emptied(bad[0].ended_s) if bad else None
        if emptied is None:
            return {}
        third_s = self.load.third_in_a_row(self.candidate)
        quarantined = self.first_of("Quarantined")
        late = max((call.began_s - emptied.at_s for call in mine if call.began_s > emptied.at_s), default=0.0)
        found: Json = {
            "first_bad_to_weight_0_s": _rounded(emptied.at_s - bad[0].ended_s),
            "decision_to_last_request_ms": _rounded(1000 * late),
        }
        if quarantined is not None and third_s is not None:
            found["third_bad_to_quarantine_s"] = _rounded(quarantined.at_s - third_s)
        return found


def _told(stage: Stage, began_s: float) -> Json:
    return {
        "second": _rounded(stage.at_s - began_s),
        "phase": stage.phase,
        "weight": stage.weight,
        "reason": stage.reason,
        "message": stage.message,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)
