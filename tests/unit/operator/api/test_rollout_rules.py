"""The rules of the definitions, evaluated as an API server does, agree with the types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
from cel_expr_python import cel
from pydantic import TypeAdapter, ValidationError

from fakes.cases import cases
from segserve_builder.spec.model_spec import Runtime
from segserve_operator.api.crd import structural_schema
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.api.segmentation_model import SegmentationModelSpec
from segserve_operator.api.triton_pool import TritonPoolSpec

_KUBERNETES_OWN = {"self.map(step, step.weight).isSorted()": "true"}
"""What CEL has only on an API server, and what stands for it here; tests/e2e/cluster/test_crds.py has the real one."""

WEBHOOK = {"gate": "webhook", "name": "night", "url": "http://night/"}
BOUNDLESS = {"gate": "promql", "name": "load", "address": "http://p:9090", "query": "up"}
PROMQL = {**BOUNDLESS, "min": 0.5}


def filled(value: Any, schema: Mapping[str, Any]) -> Any:
    """Put in the defaults, as an API server does."""
    if isinstance(value, list):
        return [filled(item, schema["items"]) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    fields = schema["properties"]
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field and name not in value}
    return {name: filled(item, fields[name]) for name, item in (value | defaults).items()}


def broken(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the message of each rule that a value breaks."""
    environment = cel.NewEnv(
        variables={"self": cel.Type.List(cel.Type.DYN) if isinstance(value, list) else cel.Type.DYN}
    )
    for rule in schema.get("x-kubernetes-validations", ()):
        text = rule["rule"]
        for own, instead in _KUBERNETES_OWN.items():
            text = text.replace(own, instead)
        found = environment.compile(text).eval(data={"self": value})
        assert found.type() == cel.Type.BOOL, f"{rule['rule']}: {found.value()}"
        if not found.value():
            yield rule["message"]
    if isinstance(value, list):
        for item in value:
            yield from broken(item, schema["items"])
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from broken(item, schema.get("properties", {}).get(name, {}))


def messages(kind: type, field: str, value: Any) -> list[str]:
    schema = structural_schema(kind)["properties"][field]
    return list(broken(filled(value, schema), schema))


@cases(
    "rollout",
    {
        "nothing said": {},
        "two steps": {"steps": [{"weight": 1, "minDuration": "90s", "maxDuration": "1h30m"}, {"weight": 99}]},
        "no steps, but those that are filled in": {"strategy": "blueGreen"},
        "no steps": {"strategy": "immediate", "steps": []},
        "a shadow": {"shadow": {}},
        "no shadow": {"shadow": {"enabled": False}},
        "no shadow of nothing": {"strategy": "immediate", "shadow": {"enabled": False}},
        "a shadow before the switch": {"strategy": "blueGreen", "shadow": {"percent": 100}},
        "a shadow alone, and steps for a person": {"strategy": "shadow", "steps": [{"weight": 10}]},
        "a shadow that is not written": {"strategy": "shadow", "gates": [{"gate": "maskAgreement"}]},
        "a gate that needs a shadow": {
            "shadow": {},
            "gates": [{"gate": "maskAgreement", "minimum": 0.8, "onBreach": "Note"}],
        },
        "gates of each kind": {
            "gates": [{"gate": "latency", "alphaShare": 2.0}, WEBHOOK, PROMQL, {"gate": "resource"}]
        },
    },
)
def test_a_policy_that_the_types_take_breaks_no_rule(rollout: dict[str, Any]) -> None:
    RolloutPolicy.model_validate(rollout)

    assert messages(SegmentationModelSpec, "rollout", rollout) == []


@cases(
    ("rollout", "said"),
    {
        "a weight twice": ({"steps": [{"weight": 5}, {"weight": 5}]}, "weights must increase"),
        "times": ({"steps": [{"weight": 5, "minDuration": "2m", "maxDuration": "90s"}]}, "minDuration must not"),
        "a canary without steps": ({"steps": []}, "the strategy canary needs"),
        "steps of what has none": (
            {"strategy": "immediate", "steps": [{"weight": 5}]},
            "steps are for the strategy canary",
        ),
        "a shadow of nothing": ({"strategy": "immediate", "shadow": {}}, "the strategy immediate promotes"),
        "no pairs": ({"gates": [{"gate": "maskAgreement"}]}, "which only rollout.shadow collects"),
        "pairs of a shadow that is off": (
            {"shadow": {"enabled": False}, "gates": [{"gate": "maskAgreement"}]},
            "which only rollout.shadow collects",
        ),
        "a shadow alone that is off": ({"strategy": "shadow", "shadow": {"enabled": False}}, "must not be false"),
        "a shadow that promotes": ({"strategy": "shadow", "onUndecided": "Promote"}, "promotes nothing by itself"),
        "a gate twice": ({"gates": [{"gate": "latency"}] * 2}, "listed only once"),
        "a query without a bound": ({"gates": [BOUNDLESS]}, "min, max or both"),
        "a query whose bounds exclude all": ({"gates": [{**PROMQL, "max": 0.25}]}, "min, max or both"),
        "a name twice": ({"gates": [WEBHOOK, {**PROMQL, "name": "night"}]}, "listed only once"),
        "another's": ({"gates": [{"gate": "errorRate", "interval": "1m"}]}, "errorRate allows only: alphaShare"),
        "half a gate": ({"gates": [{"gate": "webhook", "name": "n"}]}, "webhook needs name, url"),
    },
)
def test_a_policy_that_the_types_refuse_breaks_its_rule(rollout: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError):
        RolloutPolicy.model_validate(rollout)

    (message,) = messages(SegmentationModelSpec, "rollout", rollout)
    assert said in message


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        ({}, True),
        ({"p50Milliseconds": 20.0, "p95Milliseconds": 20.0, "p99Milliseconds": 100.0}, True),
        ({"p50Milliseconds": 20.0, "p99Milliseconds": 100.0}, True),
        ({"p50Milliseconds": 200.0, "p99Milliseconds": 100.0}, False),
        ({"p95Milliseconds": 200.0, "p99Milliseconds": 100.0}, False),
    ],
)
def test_the_rules_of_an_slo_are_the_types(slo: dict[str, Any], good: bool) -> None:
    assert (not messages(SegmentationModelSpec, "slo", slo)) == good == _taken(Slo, slo)


def test_the_rules_of_a_runtime_are_the_types_and_a_precision_is_refused_in_the_same_words() -> None:
    engines, devices = [None, "onnxruntime", "tensorrt", "openvino"], [None, "auto", "cpu", "gpu"]
    for engine, device, precision in product(engines, devices, [None, "fp32", "fp16", "int8"]):
        named = {"engine": engine, "device": device, "precision": precision}
        runtime = {name: value for name, value in named.items() if value is not None}
        said = messages(SegmentationModelSpec, "runtime", runtime)
        assert (not said) == _taken(Runtime, runtime), runtime
        if len(said) == 1 and "precision" in said[0]:
            assert precision in ("fp16", "int8")
            assert engine != "tensorrt"
            with pytest.raises(ValidationError, match=said[0]):
                Runtime.model_validate(runtime)


@pytest.mark.parametrize(
    ("notification", "good"),
    [
        ({"url": "http://a"}, True),
        ({"secretRef": {"name": "hooks", "key": "url"}}, True),
        ({}, False),
        ({"url": "http://a", "secretRef": {"name": "hooks", "key": "url"}}, False),
    ],
)
def test_a_notification_has_one_address(notification: dict[str, Any], good: bool) -> None:
    assert (not messages(TritonPoolSpec, "notifications", [notification])) == good
    assert _taken(TritonPoolSpec, {"notifications": [notification]}) == good


def _taken(kind: type, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True
