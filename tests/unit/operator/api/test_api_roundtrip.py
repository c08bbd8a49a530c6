from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.spec.model_spec import Artifact, FrozenModel, Golden, Input, ModelClass, Output, Runtime
from segserve_operator.api.loading import dump, load
from segserve_operator.api.meta import Condition, ConditionStatus, ObjectMeta
from segserve_operator.api.rollout_policy import (
    BurnRateGate,
    ErrorRateGate,
    GoldenQualityGate,
    LatencyGate,
    PromqlGate,
    ResourceGate,
    RolloutPolicy,
    RolloutStep,
    Slo,
    WebhookGate,
)
from segserve_operator.api.segmentation_model import (
    CandidateState,
    CandidateStatus,
    ConditionType,
    RevisionStatus,
    Role,
    RolesStatus,
    RoleStatus,
    SegmentationModel,
    SegmentationModelSpec,
    SegmentationModelStatus,
)
from segserve_operator.api.segmentation_rollout import RolloutPhase, RolloutStatus
from segserve_operator.api.triton_pool import Gateway, TritonPool, TritonPoolSpec


def build(model: type[FrozenModel], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), min_size=1, max_size=8)
PATHS = WORDS.filter(lambda word: ":" not in word)  # a word before a colon is a scheme, and few of those are known
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9]|-[a-z0-9]){0,6}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True) | st.from_regex(r"[0-9]{31}e[0-9]{32}", fullmatch=True)
COLOURS = st.none() | st.from_regex(r"#[0-9a-f]{6}", fullmatch=True)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
REVISIONS = st.from_regex(r"coins-[0-9a-f]{10}", fullmatch=True)


@st.composite
def classes(draw: st.DrawFn) -> tuple[ModelClass, ...]:
    names = draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
    return tuple(ModelClass(id=number, name=name, colour=draw(COLOURS)) for number, name in enumerate(names))


MILLISECONDS = st.builds(lambda digits, power: digits * 10**power, st.integers(1, 99), st.integers(0, 3))
SECONDS = st.integers(1, 10**6).map(lambda seconds: timedelta(seconds=seconds))
STEPS = st.lists(st.integers(1, 99), min_size=1, max_size=20, unique=True).flatmap(
    lambda weights: st.tuples(
        *(
            build(RolloutStep, weight=st.just(weight), max_duration=st.none() | SECONDS, pause=st.booleans())
            for weight in sorted(weights)
        )
    )
)
GATE_LISTS = st.permutations(
    (
        ErrorRateGate(),
        LatencyGate(alpha_share=3),
        BurnRateGate(long_window=timedelta(minutes=5)),
        GoldenQualityGate(max_class_drop=0.5),
        ResourceGate(),
        WebhookGate(name="night", url="http://night:80/"),
        PromqlGate(name="load", address="http://prometheus:9090", query="up", min=1.0),
    )
).flatmap(lambda gates: st.integers(0, len(gates)).map(lambda count: tuple(gates[:count])))
ROLLOUTS = build(
    RolloutPolicy,
    steps=STEPS,
    pace=st.sampled_from(["evidence", "steps"]),
    alpha=st.floats(1e-6, 0.2),
    deadline=SECONDS,
    on_undecided=st.sampled_from(["Hold", "Rollback", "Promote"]),
    gates=GATE_LISTS,
)
SPECS = build(
    SegmentationModelSpec,
    artifact=build(
        Artifact,
        uri=PATHS,
        sha256=DIGESTS,
        provenance=st.none() | st.dictionaries(WORDS, WORDS, max_size=3),
    ),
    family=st.just("semantic-logits"),
    input=build(Input),
    classes=classes(),
    preprocess=st.sampled_from([(), ({"decode": {}},), ({"decode": {}}, {"resize": {"mode": "keep"}})]),
    postprocess=st.integers(1, 10**6).map(lambda area: ({"argmax": {}}, {"removeSmallRegions": {"minArea": area}})),
    output=build(Output),
    runtime=build(Runtime),
    pool=NAMES,
    golden=st.none() | build(Golden, uri=PATHS, sha256=DIGESTS),
    expose=st.sampled_from([(), ("network",)]),
    keep_previous=st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds)),
    allow_class_changes=st.booleans(),
    slo=st.none() | build(Slo, error_percent=st.floats(0.001, 100), p95_milliseconds=st.none() | MILLISECONDS),
    rollout=st.none() | ROLLOUTS,
)  # fmt: skip
CONDITIONS = build(
    Condition,
    type=st.sampled_from(ConditionType),
    status=st.sampled_from(ConditionStatus),
    reason=st.just("Served"),
    message=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=8),
    last_transition_time=TIMES,
    observed_generation=st.none() | st.integers(0, 9),
)
ROLE = {"revision": REVISIONS, "group": NAMES, "since": TIMES}
STATUSES = build(
    SegmentationModelStatus,
    observed_generation=st.none() | st.integers(0, 9),
    conditions=st.lists(CONDITIONS, max_size=2).map(tuple),
    roles=build(
        RolesStatus,
        stable=st.none() | build(RoleStatus, **ROLE),
        candidate=st.none() | build(CandidateStatus, **ROLE, state=st.sampled_from(CandidateState)),
        previous=st.none() | build(RoleStatus, **ROLE),
    ),
    revisions=st.lists(
        build(RevisionStatus, revision=REVISIONS, role=st.none() | st.sampled_from(Role), created_at=TIMES), max_size=2
    ).map(tuple),
    url=st.none() | WORDS,
    weight=st.none() | st.integers(0, 100),
    slo=st.none() | st.sampled_from(["Met", "Breached"]),
    rollout=st.none()
    | build(
        RolloutStatus,
        name=REVISIONS,
        revision=REVISIONS,
        phase=st.sampled_from(RolloutPhase),
        started_at=TIMES,
        since=TIMES,
        step_since=TIMES,
        resumed_at=st.none() | TIMES,
        skipped_gates=st.sampled_from([(), ("latency",)]),
    ),
    handled_annotations=st.lists(WORDS, max_size=3, unique=True).map(tuple),
)
META = build(
    ObjectMeta,
    name=NAMES,
    namespace=NAMES,
    labels=st.dictionaries(WORDS, WORDS, max_size=2),
    creation_timestamp=st.none() | TIMES,
    finalizers=st.sampled_from([(), ("segserve.dev/fleet",)]),
)


@settings(max_examples=40, deadline=None)
@given(build(SegmentationModel, metadata=META, spec=SPECS, status=STATUSES))
def test_every_model_is_read_as_it_was_written(model: SegmentationModel) -> None:
    (read,) = load(dump([model]), "model.yaml")

    assert read == model
    assert read.pipeline.revision == model.pipeline.revision


@given(META, build(Gateway))
def test_every_pool_is_read_as_it_was_written(meta: ObjectMeta, gateway: Gateway) -> None:
    pool = TritonPool(metadata=meta, spec=TritonPoolSpec(gateway=gateway))

    assert load(dump([pool]), "pool.yaml") == [pool]


@settings(max_examples=40, deadline=None)
@given(SPECS)
def test_what_an_agent_was_told_is_read_as_it_was_written(spec: SegmentationModelSpec) -> None:
    assigned = spec.assigned("coins")

    assert AssignedModel.model_validate_json(assigned.model_dump_json(by_alias=True, exclude_none=True)) == assigned


@settings(max_examples=10, deadline=None)
@given(SPECS)
def test_processes_of_its_own_are_the_same_assignment_written_out_or_not(spec: SegmentationModelSpec) -> None:
    written, left_out = (spec.model_copy(update={"processes": value}) for value in ("own", None))

    assert written.assigned("coins") == left_out.assigned("coins")


def test_a_status_shows_nothing_that_is_not_there() -> None:
    since = datetime(2026, 3, 1, 12, tzinfo=UTC)
    candidate = CandidateStatus(
        revision="coins-2", group="coins-2", since=since, state=CandidateState.FAILED, reason="GoldenFailed"
    )
    status = SegmentationModelStatus(roles=RolesStatus(candidate=candidate), weight=0)

    assert status.to_dict() == {
        "conditions": [],
        "roles": {
            "candidate": {
                "revision": "coins-2",
                "group": "coins-2",
                "since": "2026-03-01T12:00:00Z",
                "state": "Failed",
                "reason": "GoldenFailed",
            }
        },
        "revisions": [],
        "weight": 0,
        "handledAnnotations": [],
    }


def test_a_condition_is_found_by_its_type() -> None:
    ready = Condition(
        type="Ready", status=ConditionStatus.TRUE, reason="Served", last_transition_time=datetime.now(UTC)
    )
    status = SegmentationModelStatus(conditions=(ready,))

    assert status.condition(ConditionType.READY) == ready
    assert status.condition(ConditionType.DEGRADED) is None


def test_values_cannot_be_changed(coins_value: dict[str, Any]) -> None:
    (model,) = load(yaml.safe_dump(coins_value), "model.yaml")

    with pytest.raises(ValueError, match="frozen"):
        setattr(model.metadata, "name", "pennies")  # noqa: B010 (mypy knows it, too)
