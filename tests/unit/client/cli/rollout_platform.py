"""A platform in memory with one model, whose rollout goes on with each look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from segserve_platform.platforms.errors import NotFoundError
from segserve_platform.platforms.port import MODEL, Json

Answer = Callable[[Json, str, str], Json]


@dataclass
class RolloutPlatform:
    """Each look at the model is the next of `scenes`, the last one for good.

    `answer` is what an operator makes of a request: given the model, the verb and the value, the model from then on;
    without it nobody answers. `packed` is the oldest evidence of the record.
    """

    scenes: list[Json]
    records: dict[str, Json] = field(default_factory=dict)
    answer: Answer | None = None
    packed: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)

    def model(self, name: str) -> Json:
        if name != "coins":
            raise NotFoundError(f"no SegmentationModel {name!r}; there are: coins")
        return self.scenes.pop(0) if len(self.scenes) > 1 else self.scenes[0]

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        while True:
            yield self.model(name)

    def runs(self) -> bool:
        return True

    def last_words(self, model: str) -> str:
        return ""

    def models(self) -> list[Json]:
        return self.scenes[-1:]

    def rollouts(self) -> list[Json]:
        return list(self.records.values())

    def rollout(self, name: str) -> Json | None:
        return self.records.get(name)

    def chunks(self, rollout: str, count: int) -> list[str]:
        return self.packed[:count]

    def user(self) -> str:
        return "ada@example.org"

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        assert kind == MODEL
        self.annotations |= annotations
        if self.answer is not None:
            for key, value in annotations.items():
                verb = key.removeprefix("segserve.dev/")
                after = self.answer(self.scenes[-1], verb, value)
                after["status"]["handledAnnotations"] = [f"{verb}={value}"]
                self.scenes.append(after)
