"""An operator whose clock is set, while all others have the right time: a rollout goes on step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Final

import pytest

from fakes.cluster import Cluster
from fakes.cluster_load import Load
from fakes.cluster_pool import ClusterPool, coins_manifest, said, small_pool
from fakes.operator_process import OperatorProcess
from segserve_common.files import write_private

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WHOLE_S: Final = 300.0
STEPS: Final = (25, 50)
HOLDBACK: Final = 5
"""What the former revision keeps while the promoted one bakes."""
SPEC: Final = {
    "rollout": {
        "steps": [{"weight": weight, "minDuration": "20s"} for weight in STEPS],
        "bakeTime": "10s",
        "shadow": {"enabled": False},
    },
    "keepPrevious": "0s",
}


def test_an_operators_clock_that_is_set_skips_no_step_and_moves_no_request_wrongly(
    cluster: Cluster, namespace: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """An hour ahead in the first step, and an hour behind in the second; all others have the right time."""
    clock = tmp_path / "clock"
    operator = OperatorProcess(cluster.kubeconfig, (namespace,), cluster.images, tmp_path / "operator.log", clock=clock)
    pool = ClusterPool(cluster, namespace, operator.tail)
    with operator.running():
        pool.apply(small_pool(), coins_manifest(**SPEC))
        pool.wait("the pool is whole", lambda: pool.is_whole(1, 1), WHOLE_S)
        former = said(pool.model() or {})["roles"]["stable"][0]
        with Load(pool.url) as load:
            load.answers_go_on()
            pool.apply(coins_manifest(min_area=151, **SPEC))
            for weight, ahead_s in zip(STEPS, (3600.0, -3600.0), strict=True):
                pool.wait(f"the candidate has {weight} %", lambda at=weight: decided(pool)[-1] >= at, WHOLE_S)
                write_private(clock, str(ahead_s))
                load.answers_go_on()
            pool.wait("the candidate is stable", lambda: settled(pool) not in ("", former), WHOLE_S)
            load.answers_go_on()

    weights = decided(pool)
    record_property("seen", json.dumps({"weights": weights, **load.summary()}))
    # With its clock ahead, the operator may take an agent that is not ready yet for lost, and stop for some seconds.
    assert [weight for weight, _ in groupby(filter(None, weights))] == [*STEPS, 100 - HOLDBACK, 100]
    assert load.failures == []


def decided(pool: ClusterPool) -> list[int]:
    """Return the candidate's weights as the rollout's record has decided them."""
    records = pool.cluster.get(pool.namespace, "segmentationrollouts")
    weights = [each["weight"] for record in records for each in record.get("status", {}).get("decisions", ())]
    assert weights, records
    return weights


def settled(pool: ClusterPool) -> str:
    """Return the revision that is stable once nothing is under way."""
    model = said(pool.model() or {})
    rests = model["current"] and model["conditions"]["Progressing"][0] == "False" and set(model["roles"]) == {"stable"}
    return str(model["roles"]["stable"][0]) if rests else ""
