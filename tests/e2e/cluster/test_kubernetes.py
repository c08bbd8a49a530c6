"""What a Kubernetes of today does for users and administrators with our resources and our pods."""

from __future__ import annotations

import json

import pytest

from fakes.cluster import Cluster, Json
from fakes.cluster_models import model
from fakes.served_namespace import ServedNamespace
from segserve_common.kube.names import COMPONENT_LABEL, POOL_LABEL, SERVER

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "field",
    ["segmentationmodels.spec.rollout.steps", "tritonpools.spec.gateway", "segmentationrollouts.spec.candidate"],
)
def test_kubectl_explains_a_field(cluster: Cluster, field: str) -> None:
    said = cluster.kubectl("explain", field)

    description = said.partition("DESCRIPTION:")[2].split()
    assert "VERSION:    v1alpha1" in said
    assert description[:1] != ["<empty>"]
    assert len(description) > 3


def test_a_dry_run_says_what_an_apply_would_and_stores_nothing(cluster: Cluster, namespace: str) -> None:
    good, bad = json.dumps(model()), json.dumps(model(rollout={"steps": []}))

    said = cluster.kubectl("-n", namespace, "apply", "--dry-run=server", "-f", "-", stdin=good)
    with pytest.raises(AssertionError, match="at least one step"):
        cluster.kubectl("-n", namespace, "apply", "--dry-run=server", "-f", "-", stdin=bad)

    assert said == "segmentationmodel.segserve.dev/coins created (server dry run)\n"
    assert cluster.get(namespace, "segmentationmodel") == []


def test_two_managers_of_a_model_keep_their_own_fields_and_a_conflict_names_the_other(
    cluster: Cluster, namespace: str
) -> None:
    def apply(manager: str, manifest: Json) -> str:
        options = ("--server-side", f"--field-manager={manager}", "-f", "-")
        return cluster.kubectl("-n", namespace, "apply", *options, stdin=json.dumps(manifest))

    apply("argocd", model())
    identity = {key: model()[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": "coins"}}
    apply("limits", {**identity, "spec": {"limits": {"total": {"requestsPerSecond": 5}}}})
    with pytest.raises(AssertionError, match='conflict with "argocd"'):
        apply("limits", {**identity, "spec": {"family": "semantic-labels"}})
    apply("argocd", model())

    stored = cluster.get(namespace, "segmentationmodel", "coins")["spec"]
    assert stored["limits"]["total"]["requestsPerSecond"] == 5
    assert stored["family"] == model()["spec"]["family"]


def test_every_pod_meets_the_restricted_standard(served: ServedNamespace) -> None:
    """Each namespace of these tests enforces it."""
    pod = {"containers": [{"name": "main", "image": "none", "securityContext": {"privileged": True}}]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "main"}, "spec": pod}

    for namespace in (served.name, served.operator.namespace):
        with pytest.raises(AssertionError, match='violates PodSecurity "restricted'):
            served.cluster.apply(namespace, manifest)
        assert served.cluster.pods(namespace)


def test_evictions_take_one_server_after_the_other_and_no_request_fails(served: ServedNamespace) -> None:
    labels = f"{POOL_LABEL}=default,{COMPONENT_LABEL}={SERVER}"

    def names() -> set[str]:
        return {pod["metadata"]["name"] for pod in served.cluster.pods(served.name, labels)}

    def evict(name: str) -> None:
        path = f"/api/v1/namespaces/{served.name}/pods/{name}/eviction"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        served.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    first, second = sorted(names())
    with served.load():
        evict(first)
        with pytest.raises(AssertionError, match="disruption budget"):
            evict(second)
        served.cluster.wait("another server took its place", lambda: len(names() - {first}) == 2)
        served.wait_ready("coins")
        served.cluster.wait("the second one may go", lambda: evict(second) or True)
        served.cluster.wait("another server took its place", lambda: not names() & {first, second})
        served.wait_ready("coins")
