"""A restore on a real cluster: objects without statuses, in a namespace made again, serve what was served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from fakes.cluster import Cluster, Json
from fakes.cluster_models import default_pool, model, smallest
from fakes.installed_operator import installed
from fakes.served_namespace import MODEL, ServedNamespace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

KINDS: Final = ("controllerrevisions", "segmentationrollouts", "segmentationmodels", "tritonpools")
"""What a backup has, in the order in which it is applied again."""
RIGHTS: Final = "roles,rolebindings"
KEPT: Final = ("name", "labels", "annotations")


def coins(area: int) -> Json:
    return model(postprocess=smallest(area), keepPrevious="30m")


@pytest.fixture
def served(cluster: Cluster) -> Iterator[ServedNamespace]:
    """One model on a pool of one server and one gateway."""
    with ExitStack() as stack:
        name = stack.enter_context(cluster.namespace("restore"))
        operator = stack.enter_context(installed(cluster, [name]))
        found = ServedNamespace(cluster, operator, name)
        found.apply(default_pool(replicas=1, gateway={"replicas": 1}, server={"drainSeconds": 3}), coins(150))
        found.becomes("coins", "Ready", "True")
        yield found


def exported(served: ServedNamespace, kinds: str, labels: str = "") -> list[Json]:
    """Return objects as docs/how-to/back-up.md exports them: without statuses, uids and owners."""
    found: list[Json] = served.cluster.get(served.name, kinds, labels=labels)
    return [stripped(each) for each in found]


def stripped(item: Json) -> Json:
    metadata: dict[str, Any] = {key: value for key, value in item["metadata"].items() if key in KEPT}
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def noted_roles(served: ServedNamespace) -> set[str]:
    records: list[Json] = served.cluster.get(served.name, "controllerrevisions")
    return {record["metadata"]["labels"].get("segserve.dev/role", "") for record in records}


def test_a_namespace_that_is_deleted_and_made_again_from_a_backup_serves_what_it_served(
    served: ServedNamespace,
) -> None:
    cluster, name = served.cluster, served.name
    good = served.stable("coins")
    served.apply(coins(151))
    cluster.wait("the promotion", lambda: served.stable("coins") != good)
    bad = served.stable("coins")
    served.patch(MODEL, "coins", {"metadata": {"annotations": {"segserve.dev/rollback": bad}}})
    cluster.wait("the rollback", lambda: served.stable("coins") == good)
    served.becomes("coins", "Degraded", "True", "RolledBack")
    handled = served.status("coins")["handledAnnotations"]
    cluster.wait("the records tell the roles", lambda: noted_roles(served) == {"stable", "refused"})
    backup = [exported(served, kind) for kind in KINDS]
    # Those of the operator itself, which Helm installed into the namespaces that it watches.
    rights = exported(served, RIGHTS, "app.kubernetes.io/managed-by=Helm")

    # In this order: the operator's rights to remove finalizers go with the namespace.
    served.delete("segmentationmodels", "--all")
    served.delete("tritonpools", "--all")
    cluster.remove_namespace(name)
    cluster.wait("the end of the namespace", lambda: cluster.get("default", "namespace", name) is None)
    cluster.kubectl("create", "namespace", name)
    served.apply(*rights, *(item for kind in backup for item in kind))
    served.becomes("coins", "Ready", "True")

    assert served.stable("coins") == good
    assert served.role("coins", "candidate") == (bad, "")
    assert served.status("coins")["handledAnnotations"] == handled
    assert served.becomes("coins", "Degraded", "True", "RolledBack")
    with served.load() as load:
        load.wait_for(good)

    def owners() -> set[str]:
        records: list[Json] = cluster.get(name, "controllerrevisions")
        return {owner["uid"] for each in records for owner in each["metadata"].get("ownerReferences", [{"uid": ""}])}

    model_uid = cluster.get(name, MODEL, "coins")["metadata"]["uid"]
    cluster.wait("the restored model owns its records", lambda: owners() == {model_uid})
