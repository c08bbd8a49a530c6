"""A model's service level objective (`spec.slo`) and its rollout policy (`spec.rollout`).

Each rule between fields stands here twice: as a validator, for files and the local platform, and as a CEL rule, for the
API server. `test_rollout_rules` holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from itertools import combinations, pairwise
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core.core_schema import CoreSchema, tagged_union_schema

from segserve_operator.api.checks import located
from segserve_operator.api.meta import ApiValue, Duration, format_duration

_MINUTES_10: Final = timedelta(minutes=10)


class Shadow(ApiValue):
    """Copies of callers' requests that stable and the candidate are both asked before the first step."""

    enabled: bool = Field(default=True, description="Set to false to disable Shadow where it is on by default.")
    percent: int = Field(
        default=50, ge=1, le=100, description="Percent of callers' inference requests that are copied."
    )
    max_requests_per_second: float = Field(
        default=5.0,
        gt=0,
        le=1000,
        description="Maximum number of copies per second that each gateway sends to both revisions.",
    )
    min_requests: int = Field(
        default=200, ge=20, le=100_000, description="Number of copies that both revisions get before the first step."
    )
    max_duration: Duration = Field(
        default=timedelta(minutes=10),
        description="Maximum duration; after it the steps begin with the evidence so far, unless the candidate is "
        "probably worse.",
    )


def _rules(*rules: tuple[str, str]) -> JsonDict:
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


def _check_two_digits(milliseconds: float) -> float:
    rounded = float(f"{milliseconds:.2g}")
    if rounded != milliseconds:
        raise located(
            f"must have at most two significant digits, such as {rounded:g} (the resolution of the gateway's bins), "
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
_FASTER_FIRST: Final = "a higher percentile needs a latency at least as long as a lower one's"


class Slo(ApiValue):
    """Service level objective. Latencies have two significant digits (250, 1200), as the gateway's bins have."""

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

    error_percent: Percent = Field(default=1.0, description="Percent of requests that may fail with a server error.")
    p50_milliseconds: Milliseconds | None = Field(
        default=None, description="Latency in milliseconds that 50 % of requests stay below."
    )
    p95_milliseconds: Milliseconds | None = Field(
        default=None, description="Latency in milliseconds that 95 % of requests stay below."
    )
    p99_milliseconds: Milliseconds | None = Field(
        default=None, description="Latency in milliseconds that 99 % of requests stay below."
    )

    @property
    def latencies(self) -> tuple[tuple[float, float], ...]:
        """The latency objectives as (quantile, milliseconds)."""
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
                raise located(f"{_FASTER_FIRST}: {lower} is {fast:g}, {higher} is {slow:g}", higher)
        return self


class RolloutStep(ApiValue):
    """One step of a canary: a percentage of requests and how long the candidate gets it."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                "!has(self.minDuration) || !has(self.maxDuration) || "
                "duration(self.minDuration) <= duration(self.maxDuration)",
                "minDuration must not be longer than maxDuration",
            )
        )
    )

    weight: int = Field(ge=1, le=99, description="Percent of requests sent to the candidate.")
    min_duration: Duration | None = Field(
        default=None, description="Shortest duration of the step. Default 0s, or 1m with pace: steps."
    )
    max_duration: SomeTime | None = Field(
        default=None, description="Longest duration while undecided; then onUndecided applies. Default: no limit."
    )
    pause: bool = Field(default=False, description="Wait for the annotation segserve.dev/resume before the next step.")

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.min_duration is not None and self.max_duration is not None and self.min_duration > self.max_duration:
            shown = f"{format_duration(self.min_duration)} and {format_duration(self.max_duration)}"
            raise located(f"minDuration must not be longer than maxDuration, got {shown}", "minDuration")
        return self


class Tolerance(ApiValue):
    """How much worse than stable at the same moment a candidate may be and still count as equal."""

    error_percent: float = Field(default=0.5, ge=0.01, le=50, description="Percentage points more of failed requests.")
    slow_percent: float = Field(default=3.0, ge=0.1, le=50, description="Percentage points more of slow requests.")
    latency_percent: float = Field(
        default=10.0,
        ge=0,
        le=1000,
        description="Percent by which a request may take longer before it counts as slower.",
    )
    iou: float = Field(
        default=0.01,
        ge=0.0,
        le=1,
        description="Decrease of the mean intersection over union on labelled images, 0 to 1.",
    )
    agreement: float = Field(
        default=0.1,
        ge=0.01,
        le=0.9,
        description="Decrease of the mean agreement with stable's answers, compared with stable's agreement with "
        "itself, 0 to 1.",
    )


class GateSpec(ApiValue):
    """Base of the specs of all gates; `gate` is the key in the registry of gates."""

    gate: str


class AlphaGateSpec(GateSpec):
    """Base of the specs of gates that test a hypothesis and take a share of alpha."""

    alpha_share: float = Field(
        default=1.0, gt=0, le=100, description="Weight of this gate when alpha is divided among the gates."
    )


class CheckedGateSpec(GateSpec):
    """Base of the specs of gates that judge the results of checks."""

    interval: SomeTime = Field(default=timedelta(minutes=1), description="Interval between checks.")


class ErrorRateGate(AlphaGateSpec):
    """Compares the rate of failed requests with stable's at the same moment and with the SLO."""

    gate: Literal["errorRate"] = Field(default="errorRate", description="Name of the gate.")


class LatencyGate(AlphaGateSpec):
    """Compares latencies with stable's at the same moment and with the SLO; requests that hang count as slow."""

    gate: Literal["latency"] = Field(default="latency", description="Name of the gate.")


class BurnRateGate(GateSpec):
    """Breaches if the promoted revision burns the SLO's error budget too fast over a long and a short window."""

    gate: Literal["burnRate"] = Field(default="burnRate", description="Name of the gate.")
    factor: float = Field(
        default=14.4,
        gt=1,
        description="Multiple of the rate that the SLO allows; a faster burn in both windows is a breach.",
    )
    long_window: SomeTime = Field(
        default=_MINUTES_10, description="Length of the long window; the short window is a twelfth of it."
    )


class GoldenQualityGate(AlphaGateSpec, CheckedGateSpec):
    """Compares the scores of the golden images, which the agents of candidate and stable measure on their servers."""

    gate: Literal["goldenQuality"] = Field(default="goldenQuality", description="Name of the gate.")
    min_iou: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Lowest acceptable mean intersection over union, 0 to 1. Default: no limit.",
    )
    min_class_iou: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Lowest acceptable intersection over union of every class, 0 to 1. Default: no limit.",
    )
    min_boundary_iou: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Lowest acceptable mean boundary IoU, of the bands inside of masks' outlines. Default: no limit.",
    )
    min_recall: float | None = Field(
        default=None, ge=0, le=1, description="Lowest acceptable recall, 0 to 1. Default: no limit."
    )
    min_ap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Lowest acceptable average precision as COCO defines it, 0 to 1. Default: no limit.",
    )
    max_calibration_error: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest acceptable expected calibration error of objects' scores, 0 to 1. Default: no limit.",
    )
    max_class_drop: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Largest acceptable decrease of a class's intersection over union compared with stable.",
    )
    interval: SomeTime = Field(
        default=_MINUTES_10, description="Interval between replays while the candidate gets requests."
    )

    @property
    def floors(self) -> tuple[str, ...]:
        """The limits that are set, by their names in resources; those that compare with stable are none."""
        named = self.model_dump(by_alias=True, exclude_none=True)
        return tuple(name for name in named if name.startswith("min") or name == "maxCalibrationError")


class MaskAgreementGate(AlphaGateSpec):
    """Compares the candidate's answers with stable's to the same images, without labels; needs `shadow`."""

    gate: Literal["maskAgreement"] = Field(default="maskAgreement", description="Name of the gate.")
    minimum: float | None = Field(
        default=None,
        gt=0,
        le=0.999,
        description="Lowest acceptable mean agreement with stable's answers, 0 to 1, where 1 is the same. Default: "
        "learnt from two answers of stable to the same image, less tolerance.agreement.",
    )
    max_confidence_shift: float | None = Field(
        default=None,
        ge=0.01,
        le=1,
        description="Largest acceptable difference of the mean score from stable's, 0 to 1. Default: no limit.",
    )
    on_breach: Literal["Hold", "Rollback", "Note"] = Field(
        default="Hold",
        description="Effect of a proof of lower agreement: Hold waits for a person to resume or abort, Note only "
        "reports it.",
    )


class ResourceGate(CheckedGateSpec):
    """Checks memory, restarts and queueing time of the candidate's servers."""

    gate: Literal["resource"] = Field(default="resource", description="Name of the gate.")
    max_memory_growth_percent: float = Field(
        default=50.0, gt=0, description="Percent by which a server's memory may grow after the revision was proved."
    )
    max_restarts: int = Field(default=2, ge=0, description="Restarts of one server that are acceptable.")
    max_queue_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longest acceptable mean time in seconds that requests wait in Triton's queue. Default: no limit.",
    )
    interval: SomeTime = Field(default=timedelta(seconds=10), description="Interval between measurements.")


class WebhookGate(CheckedGateSpec):
    """Calls a service of your own (POST with a JSON body); a status of 2xx passes, 4xx breaches."""

    gate: Literal["webhook"] = Field(default="webhook", description="Name of the gate.")
    name: GateName = Field(description="Name of the gate in verdicts.")
    url: str = Field(max_length=2048, pattern=r"^https?://", description="URL to POST to.")
    timeout: SomeTime = Field(default=timedelta(seconds=10), description="How long to wait for the answer.")


class PromqlGate(CheckedGateSpec):
    """Queries Prometheus: passes if all numbers of the result are within the bounds, and breaches if one is not."""

    gate: Literal["promql"] = Field(default="promql", description="Name of the gate.")
    name: GateName = Field(description="Name of the gate in verdicts.")
    address: str = Field(max_length=2048, pattern=r"^https?://", description="URL of the Prometheus server.")
    query: str = Field(
        max_length=4096,
        description="PromQL query; {model}, {candidate} and {stable} are replaced by the current names.",
    )
    min: float | None = Field(
        default=None, description="Smallest number of the result that is not a breach. Default: no bound."
    )
    max: float | None = Field(
        default=None, description="Largest number of the result that is not a breach. Default: no bound."
    )
    timeout: SomeTime = Field(default=timedelta(seconds=10), description="How long to wait for the answer.")

    @property
    def is_bounded(self) -> bool:
        """Whether there is a bound, and a number within both."""
        if self.min is None or self.max is None:
            return self.min is not None or self.max is not None
        return self.min <= self.max


GATE_SPECS: Final[Mapping[str, type[GateSpec]]] = {
    "errorRate": ErrorRateGate,
    "latency": LatencyGate,
    "burnRate": BurnRateGate,
    "goldenQuality": GoldenQualityGate,
    "resource": ResourceGate,
    "webhook": WebhookGate,
    "promql": PromqlGate,
    "maskAgreement": MaskAgreementGate,
}
"""Specs of gates by name; the gates themselves are in `core.gates.GATES`."""


def _gate_schema(_source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return the schema of a union over `GATE_SPECS`, tagged by the field `gate`."""
    choices = {name: handler.generate_schema(spec) for name, spec in GATE_SPECS.items()}
    return tagged_union_schema(choices, discriminator="gate")


Gate: TypeAlias = Annotated[GateSpec, GetPydanticSchema(_gate_schema)]
DEFAULT_GATES: Final = (ErrorRateGate(), LatencyGate(), BurnRateGate(), GoldenQualityGate())
DEFAULT_STEPS: Final = (RolloutStep(weight=5), RolloutStep(weight=25), RolloutStep(weight=50))
_ALL_AT_ONCE: Final = "steps are for the strategy canary; blueGreen and immediate switch all requests at once"
_NOT_JUDGED: Final = "the strategy shadow judges by copies of callers' requests: shadow.enabled must not be false"
_SERVES_NOBODY: Final = "shadow promotes nothing by itself: onUndecided must be Hold or Rollback"
_NO_SHADOW: Final = "the strategy immediate promotes a revision at once; shadow is for canary and blueGreen"
_NO_PAIRS: Final = "the gate maskAgreement judges pairs of answers, which only rollout.shadow collects"
_IS_ON: Final = "has(self.shadow) && (!has(self.shadow.enabled) || self.shadow.enabled)"
_NO_STEP: Final = "the strategy canary needs at least one step; use blueGreen to switch without steps"
_RISING: Final = "weights must increase from step to step"
_NO_BOUND: Final = "the gate promql needs min, max or both, and min must not exceed max"
_GATE_TWICE: Final = "each gate and each name may be listed only once"
_RESERVED: Final = ("latency", "resource", "webhook", "promql")
"""Names of gates that users' gates may not have."""
_DEFAULT_WEIGHTS: Final = [step.weight for step in DEFAULT_STEPS]


def _check_rising(steps: tuple[RolloutStep, ...]) -> tuple[RolloutStep, ...]:
    for index, (step, following) in enumerate(pairwise(steps), start=1):
        if following.weight <= step.weight:
            raise located(f"{_RISING}, got {following.weight} after {step.weight}", index, "weight")
    return steps


def gate_name(gate: Gate) -> str:
    """Return the name of a gate in verdicts and `skip-gate`: its kind, or the name that the user gave it."""
    return gate.name if isinstance(gate, WebhookGate | PromqlGate) else gate.gate


def _check_gates(gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
    index_by_gate: dict[str, int] = {}
    for index, gate in enumerate(gates):
        name = gate_name(gate)
        if name in index_by_gate:
            raise located(f"{_GATE_TWICE}: gates[{index_by_gate[name]}] is {name!r} already", index)
        if name in _RESERVED and isinstance(gate, WebhookGate | PromqlGate):
            raise located(
                f"the name {name!r} belongs to another gate; reserved names: {', '.join(_RESERVED)}", index, "name"
            )
        if isinstance(gate, PromqlGate) and not gate.is_bounded:
            raise located(_NO_BOUND, index)
        index_by_gate[name] = index
    return gates


class RolloutPolicy(ApiValue):
    """How a new revision replaces the stable one. Without a policy a revision is promoted as soon as it is proved."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            ("self.strategy != 'canary' || self.steps.size() > 0", _NO_STEP),
            (
                "self.strategy in ['canary', 'shadow'] || self.steps.size() == 0 || "
                f"self.steps.map(step, step.weight) == {_DEFAULT_WEIGHTS}",
                _ALL_AT_ONCE,
            ),
            (f"self.strategy != 'immediate' || !({_IS_ON})", _NO_SHADOW),
            (
                f"({_IS_ON}) || self.strategy == 'shadow' || !self.gates.exists(gate, gate.gate == 'maskAgreement')",
                _NO_PAIRS,
            ),
            ("self.strategy != 'shadow' || self.onUndecided != 'Promote'", _SERVES_NOBODY),
            (f"self.strategy != 'shadow' || !has(self.shadow) || ({_IS_ON})", _NOT_JUDGED),
        )
    )

    strategy: Literal["canary", "blueGreen", "immediate", "shadow"] = Field(
        default="canary",
        description="canary shifts requests in steps; blueGreen switches at once after the golden images; immediate "
        "at once after the proof; shadow judges by copies of callers' requests, and a person promotes.",
    )
    pace: Literal["evidence", "steps"] = Field(
        default="evidence",
        description="evidence advances as soon as the possible harm fits maxBadRequests; steps also waits for "
        "minDuration.",
    )
    steps: Annotated[tuple[RolloutStep, ...], AfterValidator(_check_rising)] = Field(
        default=DEFAULT_STEPS,
        max_length=20,
        description="Steps of a canary, with increasing weights.",
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
    shadow: Shadow | None = Field(
        default=None,
        description="Send copies of callers' requests to the candidate before the first step. Default: on, with the "
        "values below, if spec.slo is set, the gateway has a comparator, and stable has been watched for nine "
        "minutes.",
    )
    alpha: float = Field(
        default=0.01,
        ge=1e-6,
        le=0.2,
        description="Probability that a healthy revision is rolled back; divided among the gates.",
    )
    max_bad_requests: int = Field(
        default=100, ge=1, description="Requests that may fail or be slow because of one rollout."
    )
    min_requests: int = Field(
        default=10, ge=1, description="Requests that the candidate must have had before a step ends."
    )
    tolerance: Tolerance = Field(default=Tolerance(), description="How much worse than stable still counts as equal.")
    deadline: SomeTime = Field(
        default=timedelta(hours=6), description="Longest time without a decision; then onUndecided applies."
    )
    on_undecided: Literal["Hold", "Rollback", "Promote"] = Field(
        default="Hold", description="What happens at the deadline or at a step's maxDuration."
    )
    bake_time: Duration = Field(
        default=_MINUTES_10, description="How long a promoted revision is watched before the rollout succeeds."
    )
    gates: Annotated[tuple[Gate, ...], AfterValidator(_check_gates)] = Field(
        default=DEFAULT_GATES,
        validate_default=True,
        max_length=16,
        description="Gates that judge the candidate.",
        json_schema_extra={
            "x-kubernetes-list-type": "atomic",
            "default": [{"gate": gate.gate} for gate in DEFAULT_GATES],
            **_rules(
                (
                    "self.all(gate, self.exists_one(other, (has(other.name) ? other.name : other.gate) == "
                    "(has(gate.name) ? gate.name : gate.gate)))",
                    _GATE_TWICE,
                ),
                (
                    "self.all(gate, gate.gate != 'promql' || (has(gate.min) && has(gate.max) ? gate.min <= gate.max : "
                    "has(gate.min) || has(gate.max)))",
                    _NO_BOUND,
                ),
            ),
        },
    )

    def judging(self) -> Self:
        """Return the policy with what its strategy needs: copies, for one that judges by them alone."""
        lacks = self.strategy == "shadow" and self.shadow is None
        return self.model_copy(update={"shadow": Shadow()}) if lacks else self

    def shadowed(self, *, by_default: bool) -> Self:
        """Return the policy with the Shadow that it gets: the default one if it says nothing, none if it says no."""
        if self.shadow is not None and not self.shadow.enabled:
            return self.model_copy(update={"shadow": None})
        if self.shadow is None and by_default and self.strategy in ("canary", "blueGreen"):
            return self.model_copy(update={"shadow": Shadow()})
        return self

    def promoting(self) -> Self:
        """Return the policy by which a person's promotion rolls out what was only judged: by the steps, if any."""
        if self.strategy != "shadow":
            return self
        return self.without_pairs().model_copy(update={"strategy": "canary" if self.steps else "blueGreen"})

    def without_pairs(self) -> Self:
        """Return the policy without Shadow, and without the gates that judge its pairs alone."""
        gates = tuple(gate for gate in self.gates if not isinstance(gate, MaskAgreementGate))
        return self.model_copy(update={"shadow": None, "gates": gates})

    @model_validator(mode="after")
    def _check_steps_suit(self) -> Self:
        if self.strategy == "canary" and not self.steps:
            raise located(_NO_STEP, "steps")
        if self.strategy not in ("canary", "shadow") and self.steps not in ((), DEFAULT_STEPS):
            raise located(f"{_ALL_AT_ONCE}; {self.strategy} got {len(self.steps)}", "steps")
        is_on = self.shadow is not None and self.shadow.enabled
        if self.strategy == "immediate" and is_on:
            raise located(_NO_SHADOW, "shadow")
        if self.strategy == "shadow" and self.shadow is not None and not is_on:
            raise located(_NOT_JUDGED, "shadow", "enabled")
        compares = is_on or self.strategy == "shadow"
        if not compares and any(isinstance(gate, MaskAgreementGate) for gate in self.gates):
            raise located(_NO_PAIRS, "gates")
        if self.strategy == "shadow" and self.on_undecided == "Promote":
            raise located(_SERVES_NOBODY, "onUndecided")
        return self
