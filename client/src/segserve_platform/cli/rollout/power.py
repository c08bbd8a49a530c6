"""`segserve rollout plan`: the regressions that a rollout could detect at a given request rate."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from segserve_operator.api.rollout_policy import RolloutPolicy, Shadow, Slo, gate_name
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.rollout.power import Preview, preview
from segserve_operator.core.rollout.record import Record
from segserve_platform.cli.errors import CommandError
from segserve_platform.platforms.manifests import read_files
from segserve_platform.platforms.rollouts.words import span

MINUTES: Final = 10.0
LEAST_RATE: Final = 0.01


def previews(files: Iterable[Path], rps: float, minutes: float) -> list[str]:
    """Return for each model in the files what its rollout could detect at `rps` requests per second."""
    resources = [written.resource for written in read_files(files)]
    models = [each for each in resources if isinstance(each, SegmentationModel)]
    if not models:
        kinds = ", ".join(resource.kind for resource in resources)
        raise CommandError(f"no SegmentationModel in the files; found: {kinds or 'nothing'}")
    return [_preview(model, rps, minutes) for model in models]


def _preview(model: SegmentationModel, rps: float, minutes: float) -> str:
    name, policy = model.metadata.name, model.spec.rollout
    if policy is None:
        return f"{name}: no `spec.rollout`: a new revision is promoted as soon as it is ready, whatever callers see"
    shadowed = policy.shadowed(by_default=model.spec.slo is not None)
    summary = preview(shadowed.promoting(), model.spec.slo or Slo(), rps, minutes)
    shadow = shadowed.shadow if policy.strategy != "shadow" else None
    by_person = "if a person promotes it, " if policy.strategy in ("shadow", "abTest") else ""
    lines = [f"{name}: {_how(policy)}", f"{by_person}{summary.text()}"]
    if shadow is None:
        return "\n".join(lines)
    between_s = span_of_shadow(shadow, rps)
    copies = f"{shadow.copies_per_second(rps):.2g} copies a second and no request of a caller"
    lines.insert(1, f"first {_range(between_s)} of Shadow, where the gateway compares: {copies}")
    if not by_person and math.isfinite(summary.promoted_s):
        minutes_s = [60.0 * round((each + summary.promoted_s) / 60.0) for each in between_s]
        lines[-1] += f", with Shadow before it in {_range(minutes_s)}"
    return "\n".join(lines)


def span_of_shadow(shadow: Shadow, rps: float) -> tuple[float, float]:
    """Return the shortest and the longest time that Shadow takes before the first step."""
    longest_s = shadow.max_duration.total_seconds()
    shortest_s = shadow.min_requests / shadow.copies_per_second(rps)
    return min(shortest_s, longest_s), longest_s


def _range(seconds: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(map(span, seconds)))


def _how(policy: RolloutPolicy) -> str:
    gates = ", ".join(gate_name(gate) for gate in policy.gates) or "none"
    steps = ", ".join(f"{step.weight} %" for step in policy.steps) if policy.strategy == "canary" else "all at once"
    if policy.strategy == "shadow":
        steps = f"no requests, a verdict within {span((policy.shadow or Shadow()).max_duration.total_seconds())}"
    if policy.ab_test is not None:
        steps = f"{policy.ab_test.weight} % of ids for {span(policy.ab_test.duration.total_seconds())}"
    return f"{policy.strategy}, {steps}; gates: {gates}; alpha {100 * policy.alpha:g} %"


@dataclass(slots=True)
class Outlook:
    """One line with the regressions that a rollout can detect in ten minutes at the current request rate.

    Computing it takes a second, so a live view polls and continues meanwhile.
    """

    _lines: dict[tuple[str, float], str] = field(default_factory=dict)
    _last: str = ""

    def line(self, record: Record, *, wait: bool = False) -> str:
        """Return the line, or the last known one; empty without requests, or until the first one is computed."""
        # One digit: small changes of the rate do not matter.
        rate = float(f"{float(record.progress.rate):.1g}")
        if rate < LEAST_RATE:
            return ""
        key = record.name, rate
        if key not in self._lines:
            self._lines[key] = ""
            worker = threading.Thread(target=self._work_out, args=(key, record), daemon=True)
            worker.start()
            worker.join(None if wait else 0.0)
        self._last = self._lines[key] or self._last
        return self._last

    def _work_out(self, key: tuple[str, float], record: Record) -> None:
        self._lines[key] = brief(preview(record.policy, record.slo, key[1], MINUTES))


def brief(summary: Preview) -> str:
    """Return the smallest detectable regression of each kind, and how soon it is detected."""
    parts = []
    for what in dict.fromkeys(row.what for row in summary.rows):
        rows = [row for row in summary.rows if row.what == what]
        detectable = [row for row in rows if math.isfinite(row.seconds)]
        if detectable:
            parts.append(f"{what} {detectable[0].size} in {span(detectable[0].seconds)}")
        else:
            parts.append(f"no {what} up to {rows[-1].size}")
    return f"{summary.minutes:g} min at {summary.requests_per_second:g} requests/s detect {', '.join(parts)}"
