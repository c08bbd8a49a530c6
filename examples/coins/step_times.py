"""How long each step of a served model takes, from Triton's own statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

STEPS: Final[Mapping[str, str]] = {
    "segserve--pre--": "decode + preprocess",
    "segserve--net--": "network",
    "segserve--post--": "postprocess",
    "segserve--pipeline--": "all of the model",
}
# Not compute_output: it ends when the answer was handed on, and by then the next step computes already.
COMPUTE: Final = ("compute_input", "compute_infer")
NS_PER_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Mean milliseconds a request, as Triton saw it: in each step, waiting for a free instance, and in all."""

    compute_ms: Mapping[str, float]
    queue_ms: float
    ensemble_ms: float

    @property
    def around_ms(self) -> float:
        """What the ensemble takes while no step computes: waiting, hops and copies."""
        return self.ensemble_ms - sum(self.compute_ms.values())


@dataclass(frozen=True, slots=True)
class Counters:
    """Triton's counters of one ensemble and its steps at one moment, by model name."""

    ensemble: str
    steps: tuple[str, ...]
    statistics: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, http: httpx.Client, model: str) -> Self:
        """Ask for the counters of `model`; `http` has the gateway's, or a Triton's, URL as its base."""
        config = http.get(f"/v2/models/{model}/config").raise_for_status().json()
        steps = tuple(step["model_name"] for step in config["ensemble_scheduling"]["step"])
        listed = http.get("/v2/models/stats").raise_for_status().json()["model_stats"]
        return cls(model, steps, {entry["name"]: entry["inference_stats"] for entry in listed})

    def until(self, later: Self) -> StepTimes:
        """Return the mean times of the requests between these counters and later ones."""
        compute, queue = {}, 0.0
        for step in self.steps:
            name = next(text for prefix, text in STEPS.items() if step.startswith(prefix))
            compute[name] = sum(self._mean_ms(later, step, part) for part in COMPUTE)
            queue += self._mean_ms(later, step, "queue")
        return StepTimes(compute, queue, self._mean_ms(later, self.ensemble, "success"))

    def _mean_ms(self, later: Self, model: str, part: str) -> float:
        # A model that nobody has called yet has empty statistics.
        before = self.statistics.get(model, {})
        after = later.statistics[model]
        requests: int = after["success"]["count"] - before.get("success", {}).get("count", 0)
        spent_ns: int = after[part]["ns"] - before.get(part, {}).get("ns", 0)
        return spent_ns / max(requests, 1) / NS_PER_MS
