from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes.cases import cases
from fakes.pools import FULL, MINIMAL, VARIABLE, coins, pods_with, pool_context, with_defaults
from segserve_operator.adapters.kube.objects import (
    PoolContext,
    assignment_config_map,
    gateway_objects,
    gateway_url,
    group_objects,
    main_group,
    plan_config_map,
    revision_object,
    scale_selector,
    template_digest,
)

TARGET = pool_context(MINIMAL)


def by_kind(objects: tuple[dict[str, Any], ...]) -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for found in objects}


def record(**changed: Any) -> dict[str, Any]:
    own = coins()
    known = {"namespace": "vision", "pool": "default", "model": "coins", "uid": "4e5f", "number": 1}
    return revision_object(**known | {"revision": own.revision, "assigned": own} | changed)


@cases(
    "other",
    {
        "replicas": pool_context(MINIMAL, replicas=7),
        "isolation": pool_context(MINIMAL, isolation="shared"),
        "the gateway": pool_context(MINIMAL, gateway={"port": 80, "workers": 9, "maxRequestBytes": 2**30}),
        "Envoy's image": with_defaults(TARGET, envoy_image="envoy:2"),
        "the operator's image": with_defaults(TARGET, operator_image="segserve/operator:2"),
    },
)
def test_what_servers_are_not_made_of_leaves_the_main_group(other: PoolContext) -> None:
    assert main_group(other) == main_group(TARGET)


@cases(
    "other",
    {
        "the image": pool_context(MINIMAL, server={"image": "own:1", "version": "26.05"}),
        "resources": pool_context(MINIMAL, server={"resources": {"limits": {"cpu": 1}}}),
        "the environment": pool_context(MINIMAL, server=VARIABLE),
        "the artifacts' base": pool_context(MINIMAL, artifacts={"base": "https://m.example.com/"}),
        "claims of artifacts": pool_context(MINIMAL, artifacts={"claims": ["models"]}),
        "what artifacts come from": pool_context(MINIMAL, artifacts={"privateHosts": ["*.svc"]}),
        "the operator's choice of image": with_defaults(TARGET, server_image="segserve/server:2"),
        "the release": with_defaults(TARGET, triton_version="26.05"),
        "where spans are sent": pool_context(MINIMAL, gateway={"tracing": {"endpoint": "http://collector"}}),
    },
)
def test_other_servers_are_another_main_group(other: PoolContext) -> None:
    assert main_group(other) != main_group(TARGET)


def test_which_share_of_requests_is_traced_leaves_the_main_group() -> None:
    groups = {
        main_group(pool_context(MINIMAL, gateway={"tracing": {"endpoint": "http://collector", "samplingRatio": share}}))
        for share in (0, 0.5, 1)
    }

    assert len(groups) == 1


def test_pools_of_equal_servers_differ_in_nothing_but_names() -> None:
    """A group's name is no part of the digest: that would be a circle."""
    assert main_group(TARGET) == f"main-{template_digest(TARGET)}"


def test_groups_of_one_pool_share_no_object() -> None:
    one, two = (group_objects(TARGET, group, 1) for group in ("main-0", "coins-0123456789"))

    keys = [(found["kind"], found["metadata"]["name"]) for found in (*one, *two, *gateway_objects(TARGET))]
    assert len(keys) == len(set(keys))


def test_the_longest_names_are_names() -> None:
    target = replace(TARGET, pool="p" * 40)
    longest = f"{'m' * 40}-0123456789"

    objects = (*group_objects(target, longest, 1), *gateway_objects(target))
    for found in (*objects, assignment_config_map(target, longest, 3, "QQ==")):
        assert len(found["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in found["metadata"]["labels"].values())
    keys = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(keys) == len(set(keys))


def test_servers_may_read_their_assignment_and_write_their_report_and_nothing_else() -> None:
    role = by_kind(group_objects(TARGET, "main-0", 1))["Role"]
    own = "segserve-default--main-0--"

    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [f"{own}assignment-{shard}" for shard in range(4)],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [f"{own}reports"], "verbs": ["get", "patch"]},
    ]


def test_a_field_that_is_no_longer_said_makes_another_manifest() -> None:
    """What is absent is not compared: by the digest the object differs all the same."""
    before = by_kind(gateway_objects(pool_context(MINIMAL, gateway=pods_with(nodeSelector={"disk": "fast"}))))[
        "Deployment"
    ]
    after = by_kind(gateway_objects(TARGET))["Deployment"]

    stamp = "segserve.dev/manifest"
    assert before["metadata"]["annotations"][stamp] != after["metadata"]["annotations"][stamp]
    assert stamp not in after["spec"]["template"]["metadata"]["annotations"]


def test_the_services_port_is_the_pools_and_envoys_needs_no_privilege() -> None:
    service = by_kind(gateway_objects(pool_context(FULL)))["Service"]

    assert service["metadata"]["name"] == "segserve-gpus"
    port = service["spec"]["ports"][0]
    assert (port["name"], port["port"], port["targetPort"], port["protocol"]) == ("inference", 80, 8080, "TCP")
    assert gateway_url(pool_context(FULL)) == "https://segserve-gpus.vision.svc.cluster.local:80"


def test_scaling_looks_at_the_servers_of_all_groups_but_the_idle_ones() -> None:
    deployment = by_kind(group_objects(TARGET, "main-0", 1))["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    for term in scale_selector(TARGET).split(","):
        key, _, value = term.partition("=")
        assert labels[key] == value
    assert scale_selector(TARGET, ("b-0", "a-0")) == f"{scale_selector(TARGET)},segserve.dev/group notin (a-0,b-0)"


def test_equal_content_is_an_equal_config_map() -> None:
    one = assignment_config_map(TARGET, "main-0", 1, "QQ==")

    assert one == assignment_config_map(TARGET, "main-0", 1, "QQ==")
    assert one["data"]["version"] != assignment_config_map(TARGET, "main-0", 1, "Qg==")["data"]["version"]


def test_a_plan_names_the_models_that_changed_in_a_fixed_order() -> None:
    assert plan_config_map(TARGET, 0, "QQ==", {"b", "a"})["data"]["changed"] == '["a", "b"]'


def test_another_content_of_a_revision_is_another_record() -> None:
    moved = coins().model_copy(update={"artifact": coins().artifact.model_copy(update={"uri": "elsewhere.onnx"})})
    assert moved.revision == coins().revision

    assert record()["metadata"]["name"] != record(assigned=moved)["metadata"]["name"]
    assert record()["metadata"]["name"] == record(number=2)["metadata"]["name"]


def test_a_record_belongs_to_its_model_and_reads_back() -> None:
    found = record()

    assert found["metadata"]["ownerReferences"][0]["kind"] == "SegmentationModel"
    assert found["metadata"]["labels"]["segserve.dev/revision"] == coins().revision
    assert type(coins()).model_validate(found["data"]) == coins()
