"""The store in files: writes of users and of the platform never overwrite each other."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from segserve_builder.agent.protocol import Assignment
from segserve_common.files import UnreadableFileError, write_private
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.resource_files import ResourceNotFoundError
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.loading import load
from segserve_operator.api.telemetry import AccessLog
from segserve_operator.core.traffic import CredentialKind
from segserve_operator.core.world.observed import ModelStatus, RoleHolder, Roles

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
    assert model.problem.reason == "SpecInvalid"
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
    before = (await store.observed_pool()).gateway.credentials
    store.set_gateway_keys("callers", "htpasswd")

    assert (before, (await store.observed_pool()).gateway.credentials) == (frozenset(), {CredentialKind.KEY})


def test_the_access_log_is_a_field_of_the_pool_and_can_be_turned_off(store: LocalStore) -> None:
    found = []
    for share in (0.0, 0.25, None):
        store.set_gateway_access_log(share)
        found.append(store.pool().spec.gateway.access_log)

    assert found == [AccessLog(), AccessLog(sampling_ratio=0.25), None]
    edits = [event.message for _, _, event in store.events("coins") if event.reason == "Edited"]
    assert edits[-1] == "generation 3: spec.gateway.accessLog"


SERVED = ModelStatus(roles=Roles(RoleHolder("coins-1", "main", 1.0)))


async def test_a_status_that_cannot_be_read_for_a_moment_is_not_written_over(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(store)
    await store.save_status("coins", SERVED)
    path = store.state.objects / "SegmentationModel/coins/status.yaml"
    written = path.read_bytes()
    again, read_text = LocalStore(store.state), Path.read_text

    def without_descriptors(self: Path, *arguments: Any, **options: Any) -> str:
        if self == path:
            raise OSError(errno.EMFILE, "Too many open files")
        return read_text(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", without_descriptors)
        (model,) = await again.models()
        assert model.problem.reason == "StatusUnreadable"
        with pytest.raises(UnreadableFileError, match="Too many open files"):
            await again.save_status("coins", ModelStatus())

    assert path.read_bytes() == written
    (model,) = await again.models()
    assert model.status.roles == SERVED.roles


async def test_a_damaged_status_is_kept_under_another_name(store: LocalStore) -> None:
    apply(store)
    await store.save_status("coins", SERVED)
    path = store.state.objects / "SegmentationModel/coins/status.yaml"
    path.write_bytes(b"\xff\xfe damaged")

    await LocalStore(store.state).save_status("coins", ModelStatus())

    (kept,) = path.parent.glob("status.yaml.*.damaged")
    assert kept.read_bytes() == b"\xff\xfe damaged"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"roles: {stable: {revi", b"[1]", b"{}", b"x: 1", b"roles: 7", None]
)
async def test_a_model_whose_status_is_lost_has_the_revision_that_its_servers_hold(
    store: LocalStore, content: bytes | None
) -> None:
    apply(store)
    await store.save_status("coins", replace(SERVED, roles=replace(SERVED.roles, previous=SERVED.roles.stable)))
    path = store.state.objects / "SegmentationModel/coins/status.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    (wanted,) = await LocalStore(store.state).models()
    assigned = wanted.wanted.assigned
    for group, revision in (("canary", "coins-2"), ("main", "coins-1")):
        held = Assignment(models=(assigned.model_copy(update={"revision": revision}),))
        write_private(store.state.groups / group / "assignment.json", json.dumps(held.to_json()))

    again = LocalStore(store.state)
    (model,) = await again.models()
    await again.save_status("coins", model.status)
    (kept,) = await LocalStore(store.state).models()

    assert (model.problem, model.roles.candidate, model.roles.previous) == (None, None, None)
    assert (model.roles.stable.revision, model.roles.stable.group) == ("coins-1", "main")
    assert (kept.problem, kept.roles.stable.revision) == (None, "coins-1")


async def test_a_lost_status_of_a_model_that_no_server_holds_is_begun_anew(store: LocalStore) -> None:
    apply(store)
    await store.save_status("coins", SERVED)
    path = store.state.objects / "SegmentationModel/coins/status.yaml"
    path.write_bytes(b"")

    (model,) = await LocalStore(store.state).models()
    await LocalStore(store.state).save_status("coins", SERVED)

    assert (model.problem, model.roles) == (None, Roles())
    assert model.wanted is not None
    (said,) = [event.message for _, _, event in store.events("coins") if event.reason == "StatusUnreadable"]
    assert f"{path} was damaged" in said
    assert "coins-1 serves; lost are its rollout and what it refused" in said


async def test_a_damaged_pool_is_observed_as_it_was_before(store: LocalStore) -> None:
    store.set_gateway_keys("callers", "ada")
    before = await store.observed_pool()
    write_private(store.state.objects / "TritonPool/default/spec.yaml", "}")

    assert before.gateway.credentials
    assert await store.observed_pool() == before


async def test_a_model_that_names_a_damaged_one_says_which(store: LocalStore) -> None:
    apply(store)
    (resource,) = load((TEXT % ("2" * 64)).replace("name: coins}", "name: fine}"), "fine.yaml")
    manifest = resource.to_dict()
    manifest.pop("status", None)
    manifest["spec"]["cascade"] = {"light": {"model": "coins"}}
    store.apply(resource, manifest)
    path = store.state.objects / "SegmentationModel/coins/spec.yaml"
    write_private(path, "}")

    found = {model.name: model.problem for model in await store.models()}

    assert {name: problem.reason for name, problem in found.items()} == dict.fromkeys(("coins", "fine"), "FileDamaged")
    assert str(path) in found["fine"].message


async def test_only_a_model_whose_files_changed_is_read_again(store: LocalStore) -> None:
    apply(store)
    (former,) = await store.models()
    (same,) = await store.models()

    assert same is former

    apply(store, "2" * 64)
    (respecified,) = await store.models()
    await store.save_status("coins", ModelStatus(roles=Roles(stable=RoleHolder("coins-2222222222", "main", 1.0))))
    (served,) = await store.models()
    store.annotate("SegmentationModel", "coins", {"segserve.dev/pause": "x"})
    (annotated,) = await store.models()

    assert respecified.wanted != former.wanted
    assert (served.status.roles.stable, served.wanted) == (
        RoleHolder("coins-2222222222", "main", 1.0),
        respecified.wanted,
    )
    assert (annotated.generation, annotated.annotations) == (2, {"segserve.dev/pause": "x"})
