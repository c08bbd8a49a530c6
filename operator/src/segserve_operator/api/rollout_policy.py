"""What a model promises its callers (`spec.slo`), and how a change of it comes about (`spec.rollout`)."""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from segserve_operator.api.checks import located
from segserve_operator.api.meta import ApiValue, Duration, format_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.config import JsonDict

_MINUTES_10: Final = timedelta(minutes=10)


def _rules(*rules: tuple[str, str]) -> JsonDict:
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


def _check_two_digits(milliseconds: float) -> float:
    rounded = float(f"{milliseconds:.2g}")
    if rounded != milliseconds:
        raise located(
            f"must have at most two significant digits, as {rounded:g} has: the gateway's bins have no more; "
            f"got {milliseconds:g}"
        )
    return milliseconds


def _check_some_time(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise located(f"must be longer than 0s, got {format_duration(duration)}")
    return duration


Milliseconds: TypeAlias = Annotated[float, Field(gt=0, le=100_000), AfterValidator(_check_two_digits)]
Percent: TypeAlias = Annotated[float, Field(gt=0, le=100)]
SomeTime: TypeAlias = Annotated[Duration, AfterValidator(_check_some_time)]
GateName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=40)]

_PERCENTILES: Final = (50, 95, 99)
_FASTER_FIRST: Final = "a higher percentile cannot be promised sooner than a lower one"


class Slo(ApiValue):
    """What callers may rely on. Latencies have two significant digits, such as 250 or 1200: the gateway's own bins."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            *(
                (
                    f"!has(self.p{lower}Milliseconds) || !has(self.p{higher}Milliseconds) || "
                    f"self.p{lower}Milliseconds <= self.p{higher}Milliseconds",
                    _FASTER_FIRST,
                )
                for lower, higher in combinations(_PERCENTILES, 2)
            )
        )
    )

    error_percent: Percent = Field(1.0, description="So many of 100 requests may fail by the server's fault.")
    p50_milliseconds: Milliseconds | None = Field(None, description="Half of the requests are answered in this time.")
    p95_milliseconds: Milliseconds | None = Field(None, description="95 of 100 requests are.")
    p99_milliseconds: Milliseconds | None = Field(None, description="99 of 100 requests are.")

    @property
    def latencies(self) -> tuple[tuple[float, float], ...]:
        """The promises of latency as (quantile, milliseconds)."""
        named = ((0.5, self.p50_milliseconds), (0.95, self.p95_milliseconds), (0.99, self.p99_milliseconds))
        return tuple((quantile, limit_ms) for quantile, limit_ms in named if limit_ms is not None)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        named = (
            ("p50Milliseconds", self.p50_milliseconds),
            ("p95Milliseconds", self.p95_milliseconds),
            ("p99Milliseconds", self.p99_milliseconds),
        )
        given = [(name, value) for name, value in named if value is not None]
        for (lower, fast), (higher, slow) in pairwise(given):
            if fast > slow:
                raise located(f"{_FASTER_FIRST}: {lower} is {fast:g}, {higher} {slow:g}", higher)
        return self


class RolloutStep(ApiValue):
    """One share of requests on the way to all."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                "!has(self.minDuration) || !has(self.maxDuration) || duration(self.minDuration) <= duration(self.maxDuration)",
                "minDuration must not be longer than maxDuration",
            )
        )
    )

    weight: int = Field(ge=1, le=99, description="Percent of requests that the candidate gets.")
    min_duration: Duration | None = Field(None, description="The step lasts at least so long.")
    max_duration: SomeTime | None = Field(None, description="Undecided for so long, onUndecided says what follows.")
    pause: bool = Field(False, description="Wait for a person's word (segserve.dev/resume) before the next step.")

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.min_duration is not None and self.max_duration is not None and self.min_duration > self.max_duration:
            shown = f"{format_duration(self.min_duration)} and {format_duration(self.max_duration)}"
            raise located(f"minDuration must not be longer than maxDuration, got {shown}", "minDuration")
        return self


class Tolerance(ApiValue):
    """By how much a candidate may be worse than stable at the same moment and still be no worse."""

    error_percent: float = Field(0.5, ge=0.01, le=50, description="Percentage points of failed requests.")
    slow_percent: float = Field(3.0, ge=0.1, le=50, description="Percentage points of requests slower than stable's.")
    latency_percent: float = Field(10.0, ge=0, le=1000, description="Percent of added latency.")
    iou: float = Field(0.01, ge=0.0, le=1, description="Mean intersection over union on labelled images.")


class ErrorRateGate(ApiValue):
    """Failed requests, against the SLO and against stable at the same moment."""

    gate: Literal["errorRate"] = Field("errorRate", description="The gate's name.")
    alpha_share: float = Field(1.0, gt=0, le=100, description="Its part of alpha beside the other gates' parts.")


class LatencyGate(ApiValue):
    """Slow requests, against the SLO and against stable at the same moment; hung ones count as slow."""

    gate: Literal["latency"] = Field("latency", description="The gate's name.")
    alpha_share: float = Field(1.0, gt=0, le=100, description="Its part of alpha beside the other gates' parts.")


class BurnRateGate(ApiValue):
    """How fast the promoted revision uses up the SLO's error budget, over a long and a short window at once."""

    gate: Literal["burnRate"] = Field("burnRate", description="The gate's name.")
    factor: float = Field(14.4, gt=1, description="Breaches above so many times the rate that the SLO allows.")
    long_window: SomeTime = Field(_MINUTES_10, description="The long window; the short one is a twelfth of it.")


class GoldenQualityGate(ApiValue):
    """Labelled images, replayed through the gateway to candidate and stable."""

    gate: Literal["goldenQuality"] = Field("goldenQuality", description="The gate's name.")
    alpha_share: float = Field(1.0, gt=0, le=100, description="Its part of alpha beside the other gates' parts.")
    min_iou: float | None = Field(None, ge=0, le=1, description="Floor of the mean intersection over union.")
    min_class_iou: float | None = Field(None, ge=0, le=1, description="Floor of each class's.")
    min_recall: float | None = Field(None, ge=0, le=1, description="Floor of the share of objects found.")
    min_ap: float | None = Field(None, ge=0, le=1, description="Floor of COCO's average precision.")
    max_class_drop: float = Field(0.2, ge=0, le=1, description="No class's IoU may fall by more against stable's.")
    interval: SomeTime = Field(_MINUTES_10, description="Asked again so often while requests come.")

    @property
    def floors(self) -> tuple[str, ...]:
        """The floors that are named, as resources name them."""
        named = self.model_dump(by_alias=True, exclude_none=True)
        return tuple(name for name in named if name.startswith("min"))


class ResourceGate(ApiValue):
    """Memory, restarts and the queue of the candidate's servers."""

    gate: Literal["resource"] = Field("resource", description="The gate's name.")
    max_memory_growth_percent: float = Field(50.0, gt=0, description="Of the candidate's servers, since its proof.")
    max_restarts: int = Field(2, ge=0, description="Of one of its servers.")
    max_queue_seconds: float | None = Field(None, gt=0, description="Mean time that a request waits in Triton.")
    interval: SomeTime = Field(timedelta(seconds=10), description="Looked at so often.")


class WebhookGate(ApiValue):
    """A service of the user's own is asked (POST, JSON); its answer is judged by a CEL expression."""

    gate: Literal["webhook"] = Field("webhook", description="The gate's name.")
    name: GateName = Field(description="What verdicts call it.")
    url: str = Field(max_length=2048, pattern=r"^https?://", description="Whom to ask.")
    pass_condition: str = Field(
        "status == 200", max_length=1024, description="CEL over status and body: true is a pass."
    )
    breach_condition: str = Field("false", max_length=1024, description="CEL over status and body: true is a breach.")
    timeout: SomeTime = Field(timedelta(seconds=10), description="A later answer is none.")
    interval: SomeTime = Field(timedelta(minutes=1), description="Asked so often.")


class PromqlGate(ApiValue):
    """A query to Prometheus; its result is judged by a CEL expression."""

    gate: Literal["promql"] = Field("promql", description="The gate's name.")
    name: GateName = Field(description="What verdicts call it.")
    address: str = Field(max_length=2048, pattern=r"^https?://", description="The Prometheus server.")
    query: str = Field(
        max_length=4096, description="PromQL; {model}, {candidate} and {stable} stand for the names of now."
    )
    pass_condition: str = Field(max_length=1024, description="CEL over result (a list of numbers): true is a pass.")
    breach_condition: str = Field("false", max_length=1024, description="CEL over result: true is a breach.")
    timeout: SomeTime = Field(timedelta(seconds=10), description="A later answer is none.")
    interval: SomeTime = Field(timedelta(minutes=1), description="Asked so often.")


Gate: TypeAlias = Annotated[
    ErrorRateGate | LatencyGate | BurnRateGate | GoldenQualityGate | ResourceGate | WebhookGate | PromqlGate,
    Field(discriminator="gate"),
]
GATES: Final[Mapping[str, type[ApiValue]]] = {
    "errorRate": ErrorRateGate,
    "latency": LatencyGate,
    "burnRate": BurnRateGate,
    "goldenQuality": GoldenQualityGate,
    "resource": ResourceGate,
    "webhook": WebhookGate,
    "promql": PromqlGate,
}
DEFAULT_GATES: Final = (ErrorRateGate(), LatencyGate(), BurnRateGate(), GoldenQualityGate())
DEFAULT_STEPS: Final = (RolloutStep(weight=5), RolloutStep(weight=25), RolloutStep(weight=50))
_ALL_AT_ONCE: Final = "only a canary has steps: the other strategies give all requests at once"
_NO_STEP: Final = "a canary needs at least one step; the strategy blueGreen has none"
_RISING: Final = "weights must rise from step to step"
_GATE_TWICE: Final = "a gate may be listed once, and a name be given once"
_DEFAULT_WEIGHTS: Final = [step.weight for step in DEFAULT_STEPS]


def _check_rising(steps: tuple[RolloutStep, ...]) -> tuple[RolloutStep, ...]:
    for index, (step, following) in enumerate(pairwise(steps), start=1):
        if following.weight <= step.weight:
            raise located(f"{_RISING}, got {following.weight} after {step.weight}", index, "weight")
    return steps


def gate_name(gate: Gate) -> str:
    """Return what verdicts and `skip-gate` call a gate: its kind, or the name that the user gave it."""
    return gate.name if isinstance(gate, WebhookGate | PromqlGate) else gate.gate


def _check_gates(gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
    seen: dict[str, int] = {}
    for index, gate in enumerate(gates):
        name = gate_name(gate)
        if name in seen:
            raise located(f"{_GATE_TWICE}: gates[{seen[name]}] is {name!r} too", index)
        if name in GATES and isinstance(gate, WebhookGate | PromqlGate):
            raise located(f"the name {name!r} is that of another gate; taken are {', '.join(GATES)}", index, "name")
        seen[name] = index
    return gates


class RolloutPolicy(ApiValue):
    """How a new revision replaces the stable one. Without it a revision is promoted as soon as it is proved."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            ("self.strategy != 'canary' || self.steps.size() > 0", _NO_STEP),
            (
                "self.strategy == 'canary' || self.steps.size() == 0 || "
                f"self.steps.map(step, step.weight) == {_DEFAULT_WEIGHTS}",
                _ALL_AT_ONCE,
            ),
        )
    )

    strategy: Literal["canary", "blueGreen", "immediate"] = Field(
        "canary", description="By steps; all at once after the golden images; or all at once after the proof."
    )
    pace: Literal["evidence", "steps"] = Field(
        "evidence", description="The next step comes as soon as its harm fits maxBadRequests; or not before minimum."
    )
    steps: Annotated[tuple[RolloutStep, ...], AfterValidator(_check_rising)] = Field(
        DEFAULT_STEPS,
        max_length=20,
        description="Rising weights, each with its times; a canary alone has any.",
        json_schema_extra={
            "x-kubernetes-list-type": "atomic",
            "default": [{"weight": weight} for weight in _DEFAULT_WEIGHTS],
            **_rules(
                (
                    "self.map(step, step.weight).isSorted() && "
                    "self.all(step, self.exists_one(other, other.weight == step.weight))",
                    _RISING,
                )
            ),
        },
    )
    alpha: float = Field(0.01, ge=1e-6, le=0.2, description="How often a healthy revision may be rolled back.")
    max_bad_requests: int = Field(100, ge=1, description="So many requests may go wrong because of a rollout.")
    min_requests: int = Field(10, ge=1, description="No step ends before the candidate has had so many requests.")
    tolerance: Tolerance = Field(Tolerance(), description="What is no worse.")
    deadline: SomeTime = Field(timedelta(hours=6), description="Undecided for so long, onUndecided says what follows.")
    on_undecided: Literal["Hold", "Rollback", "Promote"] = Field("Hold", description="What the deadline does.")
    bake_time: Duration = Field(_MINUTES_10, description="So long a promoted revision is watched.")
    holdback: int = Field(
        5,
        ge=0,
        le=50,
        description="Percent of requests that a canary's former revision keeps during the bake, to compare with.",
    )
    max_quarantines: int = Field(3, ge=0, le=20, description="After so many a quarantine waits for a person.")
    gates: Annotated[tuple[Gate, ...], AfterValidator(_check_gates)] = Field(
        DEFAULT_GATES,
        max_length=16,
        description="What judges a candidate.",
        json_schema_extra={
            "x-kubernetes-list-type": "atomic",
            "default": [{"gate": gate.gate} for gate in DEFAULT_GATES],
            **_rules(
                (
                    "self.all(gate, self.exists_one(other, (has(other.name) ? other.name : other.gate) == "
                    "(has(gate.name) ? gate.name : gate.gate)))",
                    _GATE_TWICE,
                )
            ),
        },
    )
    self_test: bool = Field(False, description="Split stable against itself and publish the engine's own false alarms.")

    @model_validator(mode="after")
    def _check_steps_suit(self) -> Self:
        if self.strategy == "canary" and not self.steps:
            raise located(_NO_STEP, "steps")
        if self.strategy != "canary" and self.steps not in ((), DEFAULT_STEPS):
            raise located(f"{_ALL_AT_ONCE}; {self.strategy} got {len(self.steps)}", "steps")
        return self
