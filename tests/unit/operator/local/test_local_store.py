"""The store in files: writes of users and of the platform never overwrite each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segserve_common.files import write_private
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.resource_files import ResourceNotFoundError
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.loading import load
from segserve_operator.api.telemetry import AccessLog
from segserve_operator.core.traffic import CredentialKind

TEXT = """
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: coins}
spec:
  artifact: {uri: "file:///network.onnx", sha256: "%s"}
  family: semantic-logits
  classes: [{id: 0, name: background}, {id: 1, name: coin}]
  preprocess: [{decode: {}}]
  postprocess: [{argmax: {}}]
"""


def apply(store: LocalStore, sha256: str = "1" * 64, **changes: object) -> str:
    (resource,) = load(TEXT % sha256, "model.yaml")
    manifest = resource.to_dict()
    manifest.pop("status", None)
    manifest["spec"] |= changes
    return store.apply(resource, manifest)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(StateFolder(tmp_path))


def test_apply_returns_what_changed_and_counts_generations(store: LocalStore) -> None:
    assert [apply(store), apply(store), apply(store, "2" * 64)] == ["created", "unchanged", "configured"]
    assert store.get("SegmentationModel", "coins")["metadata"]["generation"] == 2


def test_a_resource_that_is_being_deleted_can_be_applied_again(store: LocalStore) -> None:
    apply(store)
    store.delete("SegmentationModel", "coins")
    apply(store)

    assert "deletionTimestamp" not in store.get("SegmentationModel", "coins")["metadata"]


async def test_a_resource_that_was_applied_again_is_not_removed(store: LocalStore) -> None:
    apply(store)
    store.delete("SegmentationModel", "coins")
    apply(store)
    await store.forget("coins")

    assert store.names("SegmentationModel") == ["coins"]


def test_an_unknown_name_raises_an_error_with_the_existing_names(store: LocalStore) -> None:
    apply(store)

    with pytest.raises(ResourceNotFoundError, match=r"no SegmentationModel 'cells'; there are: coins"):
        store.get("SegmentationModel", "cells")


@pytest.mark.parametrize("name", ["../../other", "/etc", "..", "", "coins/../coins", "x" * 300])
def test_a_name_never_leads_outside_the_folder(store: LocalStore, tmp_path: Path, name: str) -> None:
    apply(store)
    (tmp_path.parent / "other").mkdir(exist_ok=True)
    (tmp_path.parent / "other/spec.yaml").write_text("metadata: {name: other}\n")

    for operation in (store.get, store.delete):
        with pytest.raises(ResourceNotFoundError, match="there are: coins"):
            operation("SegmentationModel", name)
    assert (tmp_path.parent / "other/spec.yaml").read_text() == "metadata: {name: other}\n"


async def test_an_invalid_file_is_a_problem_of_its_model_only(store: LocalStore) -> None:
    apply(store)
    path = store.state.objects / "SegmentationModel/coins/spec.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["spec"]["postprocess"] = [{"argmaxx": {}}]
    write_private(path, yaml.safe_dump(manifest))

    (model,) = await store.models()

    assert model.wanted is None
    assert model.problem.reason == "UnknownField"
    assert "unknown stage 'argmaxx'" in model.problem.message


async def test_a_model_of_another_pool_has_the_problem_pool_not_found(store: LocalStore) -> None:
    apply(store, pool="gpu")

    (model,) = await store.models()

    assert model.problem.reason == "PoolNotFound"


def test_the_gateway_port_is_a_field_of_the_pool(store: LocalStore) -> None:
    assert store.pool().spec.gateway.port == 8080
    store.set_gateway_port(9090)
    assert store.pool().spec.gateway.port == 9090


async def test_the_credentials_that_the_gateway_takes_follow_the_resource(store: LocalStore) -> None:
    before = (await store.observed_pool()).credentials
    store.set_gateway_keys("callers", "htpasswd")

    assert (before, (await store.observed_pool()).credentials) == (frozenset(), {CredentialKind.KEY})


def test_the_access_log_is_a_field_of_the_pool_and_can_be_turned_off(store: LocalStore) -> None:
    found = []
    for share in (0.0, 0.25, None):
        store.set_gateway_access_log(share)
        found.append(store.pool().spec.gateway.access_log)

    assert found == [AccessLog(), AccessLog(sampling_ratio=0.25), None]
    edits = [event.message for _, _, event in store.events("coins") if event.reason == "Edited"]
    assert edits[-1] == "generation 3: spec.gateway.accessLog"
