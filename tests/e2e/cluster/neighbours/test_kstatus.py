"""kstatus, by which Flux waits, says of each state what docs/explanation/cluster.md does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.cluster import Cluster, Json
from fakes.cluster_models import default_pool, model
from fakes.served_namespace import MODEL, POOL, ServedNamespace
from fakes.waiting import HANG_S

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours]

NAME = "followed"
Status = Callable[[Json], str]


@pytest.fixture(scope="module")
def kstatus(built: Callable[[str], Path]) -> Status:
    program = built("kstatus")

    def status(found: Json) -> str:
        done = subprocess.run([program], input=json.dumps(found), capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout)["Status"])

    return status


def test_what_no_operator_has_seen_is_in_progress(cluster: Cluster, namespace: str, kstatus: Status) -> None:
    cluster.apply(namespace, default_pool(), model())

    found = [cluster.get(namespace, kind, name) for kind, name in ((POOL, "default"), (MODEL, "coins"))]

    assert [kstatus(each) for each in found] == ["InProgress", "InProgress"]


def test_a_model_is_current_once_its_newest_spec_serves_and_failed_while_it_cannot(
    served: ServedNamespace, kstatus: Status
) -> None:
    def until(wanted: str) -> tuple[Json, set[str]]:
        """Return the model once it is in a state, and the states before that."""
        before = set[str]()

        def look() -> Json:
            found = served.get(MODEL, NAME)
            assert found is not None
            status = kstatus(found)
            if status != wanted:
                before.add(status)
                raise AssertionError(f"{status}: {found['status']}")
            return found

        return served.cluster.wait(f"{NAME} is {wanted}", look, HANG_S), before

    assert [kstatus(served.get(POOL, name)) for name in ("default", "second")] == ["Current", "Current"]
    served.apply(model(name=NAME))
    first, before = until("Current")
    assert before == {"InProgress"}
    stable = served.stable(NAME)

    served.apply(model(name=NAME, postprocess=[{"argmax": {}}, {"removeSmallRegions": {"minArea": 153}}]))
    edited, before = until("Current")
    assert before == {"InProgress"}
    assert edited["status"]["roles"]["stable"]["revision"] != stable
    assert edited["metadata"]["generation"] == first["metadata"]["generation"] + 1

    of_boxes = model("coins-instances")["spec"]["artifact"]
    served.apply(model(name=NAME, artifact=of_boxes))
    failed, before = until("Failed")
    assert before <= {"InProgress"}
    assert [each["status"] for each in failed["status"]["conditions"] if each["type"] == "Ready"] == ["True"]

    served.delete(MODEL, NAME, wait=False)
    gone = served.get(MODEL, NAME)
    assert gone is None or kstatus(gone) == "Terminating"
    served.delete(MODEL, NAME, "--ignore-not-found")
