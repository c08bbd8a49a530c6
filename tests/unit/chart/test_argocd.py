"""What Argo CD says of segserve's resources: its script of health, run by Lua 5.1 as Argo CD runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fakes.cases import cases
from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from segserve_common.kube.kinds import MODELS, POOLS, Kind
from segserve_operator.api.meta import API_GROUP
from segserve_operator.api.resources import KINDS
from segserve_operator.api.segmentation_rollout import RolloutPhase

lua51 = pytest.importorskip("lupa.lua51", reason="there is no Lua: pip install lupa")

CONFIG: Final[dict[str, str]] = yaml.safe_load(
    (Path(__file__).parents[3] / "examples/argocd/argocd-cm.yaml").read_text()
)["data"]
STATUSES: Final = {"Healthy", "Progressing", "Degraded", "Suspended"}
BOTH: Final = ("SegmentationModel", "TritonPool")
SETTLED: Final = {
    "Ready": "True",
    "Progressing": "False",
    "Degraded": "False",
    "Reconciling": "False",
    "Stalled": "False",
}


def health(kind: str, resource: dict[str, Any]) -> tuple[str, str]:
    """Return the status and the message of a resource."""
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    script = CONFIG[f"resource.customizations.health.{API_GROUP}_{kind}"]
    found = lua.execute(f"return function(obj) {script} end")(lua.table_from(resource, recursive=True))
    assert found["status"] in STATUSES
    return str(found["status"]), str(found["message"])


def resource(
    conditions: dict[str, str], *, generation: int = 3, observed: int = 3, of: int | None = None, **status: Any
) -> dict[str, Any]:
    """Return a resource with these statuses of conditions, each `of` a generation."""
    generations = {} if of is None else {"observedGeneration": of}
    listed = [
        {"type": name, "status": value, "reason": f"{name}Reason", "message": f"why {name}", **generations}
        for name, value in conditions.items()
    ]
    return {
        "metadata": {"name": "coins", "generation": generation},
        "status": {"observedGeneration": observed, "conditions": listed, **status},
    }


def test_every_kind_has_its_script() -> None:
    assert CONFIG.keys() == {f"resource.customizations.health.{API_GROUP}_{kind}" for kind in KINDS}


NEW: Final = {"metadata": {"name": "coins", "generation": 1}}
DELETED: Final = {"metadata": {"name": "coins", "generation": 3, "deletionTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize("kind", BOTH)
@cases(
    ("found", "status", "message"),
    {
        "what serves its spec": (resource(SETTLED), "Healthy", "why Ready"),
        "what the operator has not seen": (NEW, "Progressing", None),
        "what has an empty status": ({**NEW, "status": {}}, "Progressing", None),
        "what has no conditions": ({**NEW, "status": {"observedGeneration": 3}}, "Progressing", None),
        "an edit that nobody has seen": (resource(SETTLED, generation=4, observed=3), "Progressing", None),
        "an edit that does not serve yet, although the former is ready": (
            resource({**SETTLED, "Reconciling": "True"}),
            "Progressing",
            "ReconcilingReason: why Reconciling",
        ),
        "an edit that will not serve, although the former is ready": (
            resource({**SETTLED, "Stalled": "True", "Degraded": "True"}),
            "Degraded",
            "StalledReason: why Stalled",
        ),
        "an edit of what was refused": (
            resource({**SETTLED, "Stalled": "True"}, generation=4, observed=3, of=3),
            "Progressing",
            None,
        ),
        "trouble of what serves": (
            resource({**SETTLED, "Degraded": "True"}),
            "Degraded",
            "DegradedReason: why Degraded",
        ),
        "what is being deleted": ({**resource(SETTLED), **DELETED}, "Progressing", None),
    },
)
def test_health_is_that_of_the_present_spec(kind: str, found: dict[str, Any], status: str, message: str | None) -> None:
    seen = health(kind, found)

    assert seen == (status, seen[1] if message is None else message)


def test_a_model_whose_gateways_start_after_its_servers_progresses() -> None:
    waiting = resource({**SETTLED, "Ready": "False", "Degraded": "True"})
    for condition in waiting["status"]["conditions"]:
        condition["reason"] = "NoGateway"

    assert health("SegmentationModel", waiting) == ("Progressing", "NoGateway: why Ready")


def test_a_paused_rollout_is_suspended() -> None:
    rollout = {"revision": "coins-1", "paused": True}
    moving = resource({**SETTLED, "Reconciling": "True"}, rollout=rollout)

    assert health("SegmentationModel", moving) == ("Suspended", "the rollout of coins-1 is paused")


@pytest.mark.parametrize("phase", [phase.value for phase in RolloutPhase])
def test_a_record_is_healthy_once_it_has_ended(phase: str) -> None:
    ended = phase in ("Succeeded", "RolledBack", "Cancelled")

    status, message = health("SegmentationRollout", {"metadata": {}, "status": {"phase": phase, "reason": "Why"}})

    assert (status, message) == ("Healthy" if ended else "Progressing", f"{phase}: Why")


def test_a_record_without_a_status_progresses_and_a_paused_one_is_suspended() -> None:
    assert health("SegmentationRollout", {"metadata": {}})[0] == "Progressing"
    paused = {"metadata": {}, "status": {"phase": "Progressing", "paused": True}}
    assert health("SegmentationRollout", paused) == ("Suspended", "Progressing")


async def test_what_the_operator_writes_is_read_as_it_is_meant() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns(1)
    assert _health(world, MODELS, "coins") == "Progressing"

    await world.turns()
    assert (_health(world, MODELS, "coins"), _health(world, POOLS, "default")) == ("Healthy", "Healthy")

    world.verdicts["2"] = "GoldenFailed"
    world.apply(model_manifest("coins", "2"))
    await world.turns()
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert _health(world, MODELS, "coins") == "Degraded"

    world.apply(model_manifest("coins"))
    await world.turns()
    assert _health(world, MODELS, "coins") == "Healthy"


def _health(world: ClusterWorld, kind: Kind, name: str) -> str:
    found = world.kube.peek(kind, NAMESPACE, name)
    assert found is not None
    return health(kind.name, found)[0]
