"""How models become ready after `segserve up`: one line each, with the time that each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from typing import Final

from segserve_operator.core.rollout.phases import ENDED
from segserve_platform.platforms.port import Json
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.waiting import condition, is_seen, readiness

PHASES: Final = {
    "": "platform",
    "Starting": "server",
    "NoServer": "server",
    "Fetching": "download",
    "Loading": "load",
    "Proving": "golden images",
    "Routing": "gateway",
    "NoGateway": "gateway",
    "Ready": "gateway",
}
"""What a model waits for, by the reason of its condition; other reasons are shown as they are."""

LEAST_S: Final = 0.05
LEAST_SHARE: Final = 0.03
"""Share of the time below which a phase is not worth a word."""


def phase(manifest: Json) -> str:
    """Return what a model that does not serve yet waits for."""
    if not is_seen(manifest):
        return PHASES[""]
    moving = condition(manifest, "Progressing")
    reason = str((moving if moving["status"] == "True" else condition(manifest, "Ready"))["reason"])
    if reason == "NoServer":  # a kept model: what its servers have done so far is in other conditions
        if condition(manifest, "RevisionLoaded")["status"] == "True":
            return PHASES["Proving"]
        if condition(manifest, "ArtifactVerified")["status"] == "True":
            return PHASES["Loading"]
    return PHASES.get(reason, reason)


def is_up(manifest: Json) -> bool:
    """Return whether a model serves: its newest spec, or a former one while a rollout decides on the newest."""
    state, rolls = readiness(manifest), Present.of(manifest).phase not in ("", *(phase.label for phase in ENDED))
    return state.serves or (state.state == "Changing" and is_seen(manifest) and rolls)


@dataclass
class Startup:
    """The models that have not served yet since the platform was started, and the seconds of each one's phases."""

    names: InitVar[Iterable[str]]
    clock: Callable[[], float] = time.monotonic
    waiting: dict[str, dict[str, float]] = field(init=False)
    _last_s: float = field(init=False)

    def __post_init__(self, names: Iterable[str]) -> None:
        self.waiting = {name: {} for name in names}
        self._last_s = self.clock()

    def ready_lines(self, manifests: Iterable[Json]) -> Iterator[str]:
        """Yield a line for each model that serves for the first time; call this a few times a second."""
        now_s = self.clock()
        passed_s, self._last_s = now_s - self._last_s, now_s
        for manifest in manifests:
            name = manifest["metadata"]["name"]
            phases = self.waiting.get(name)
            if phases is None:
                continue
            if is_up(manifest):
                del self.waiting[name]
                rollout = (
                    "" if readiness(manifest).serves else f"; a rollout is in progress: {Present.of(manifest).text}"
                )
                yield f"{name}: ready{_times(phases)}{rollout}"
            else:
                phases[phase(manifest)] = phases.get(phase(manifest), 0.0) + passed_s

    def summary(self, manifests: Iterable[Json]) -> str:
        """Return what the models wait for, in a line."""
        missing = (each for each in manifests if each["metadata"]["name"] in self.waiting)
        return ", ".join(f"{each['metadata']['name']}: {phase(each)}" for each in missing)


def _times(phases: dict[str, float]) -> str:
    total_s = sum(phases.values())
    if total_s < LEAST_S:
        return ""
    parts = [f"{name} {spent_s:.1f} s" for name, spent_s in phases.items() if spent_s >= LEAST_SHARE * total_s]
    return f" after {total_s:.1f} s ({', '.join(parts)})"
