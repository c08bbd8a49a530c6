"""Files that come, change and go while clients call: what is served is always right, and every failure says why."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import onnx
import pytest
import tritonclient.grpc
import yaml
from tritonclient.utils import InferenceServerException

from bench.platform import MODELS, platform
from fakes.callers import PHOTO, Load
from fakes.waiting import until
from fakes.watching import Watched, command, segserve
from segserve import Client, ModelNotFoundError
from segserve.platform import Local
from segserve_builder.sources import folder_digest
from segserve_platform.platforms.manifests import read_files
from segserve_platform.platforms.selection import open_platform

pytestmark = [pytest.mark.platform, pytest.mark.core]

EXAMPLE = MODELS.parent
Edit = Callable[..., Path]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """One platform for the module; its tests leave `coins` served, by whichever revision."""
    with platform(MODELS) as running:
        yield Watched(running)


def smallest(area: int) -> list[dict[str, object]]:
    """Return a postprocess that makes a revision of its own."""
    return [{"argmax": {}}, {"removeSmallRegions": {"minArea": area}}]


def pinned(path: Path) -> dict[str, str]:
    return {"uri": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def apply(watched: Watched, file: Path) -> str:
    return watched.command("apply", "-f", str(file)).strip()


def apply_unread(watched: Watched, file: Path) -> None:
    """Apply a resource as the control plane does: `segserve apply` refuses a file of another digest."""
    open_platform(Local(watched.running.state)).apply(read_files([file]))


def stable(watched: Watched, model: str = "coins") -> tuple[str, str]:
    found = watched.role(model, "stable")
    assert found is not None
    return found


def promoted(watched: Watched, former: str) -> str:
    """Return the revision that took over from `former`."""
    until(lambda: stable(watched)[0] != former, "promotion")
    watched.becomes("coins", "Ready", "True", "Serving")
    return stable(watched)[0]


def test_a_second_model_is_added_while_requests_run(watched: Watched, edited: Edit) -> None:
    with Load(watched.running.url, pause_s=0.1) as load:
        apply(watched, edited(model="coins-instances", name="second"))
        watched.command("wait", "second")

    with Client(watched.running.url) as client:
        assert len(client.segment(PHOTO, model="second").instances) == 24
    assert load.failures == []
    assert len(load.answers) == 1


def test_an_edit_goes_back_and_forth_and_settles_and_no_request_fails(watched: Watched, edited: Edit) -> None:
    first, _ = stable(watched)
    with Load(watched.running.url, pause_s=0.1) as load:
        # The candidate is proved in a group of its own before anything moves.
        apply(watched, edited(postprocess=smallest(151)))
        candidate, group, answered = until(lambda: candidate_and_answers(watched, load), "a candidate")
        assert group == candidate
        assert answered <= {first}
        watched.command("wait", "coins")
        assert stable(watched) == (candidate, candidate)
        assert watched.role("coins", "previous") == (first, "main")
        load.wait_for(candidate)

        # Going back is one weight write: what was kept answers at once, and nothing is started.
        groups = watched.groups()
        apply(watched, MODELS)
        load.wait_for(first)
        assert stable(watched) == (first, "main")
        assert watched.groups() <= groups

        # Forth again likewise; then the old one is let go and the new one moves into main.
        apply(watched, edited(postprocess=smallest(151), keepPrevious="3s"))
        load.wait_for(candidate)
        assert watched.groups() <= groups
        servers = [watched.process(f"groups/{candidate}/{name}") for name in ("triton", "agent")]
        until(lambda: watched.groups() == {"main"}, "the candidate's group is gone")
        load.wait_for(candidate)

    assert load.failures == []
    assert set(load.answers) == {first, candidate}
    assert stable(watched) == (candidate, "main")
    assert watched.role("coins", "previous") is None
    until(lambda: not any(server.is_running() for server in servers if server is not None), "its servers end")
    assert watched.shm(candidate) == ()
    assert not (watched.state.revisions / f"{first}.json").exists()


def candidate_and_answers(watched: Watched, load: Load) -> tuple[str, str, set[str]] | None:
    """Return the candidate, its group, and who has answered up to a moment at which it still was one."""
    answered = set(load.answers)
    found = watched.role("coins", "candidate")
    return (*found, answered) if found is not None else None


def test_a_deleted_model_is_not_found_and_others_notice_nothing(watched: Watched) -> None:
    instances, _ = stable(watched, "coins-instances")
    with Load(watched.running.url, pause_s=0.1) as load:
        watched.command("delete", "coins-instances")
        with Client(watched.running.url) as http, Client(watched.running.url, transport="grpc") as grpc:
            for client in (http, grpc):
                with pytest.raises(ModelNotFoundError, match="coins-instances"):
                    client.segment(PHOTO, model="coins-instances")

    plain = tritonclient.grpc.InferenceServerClient(watched.running.url.removeprefix("http://"))
    with pytest.raises(InferenceServerException) as caught:
        plain.get_model_config("coins-instances")
    plain.close()
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert load.failures == []
    assert not watched.exists("coins-instances")
    assert not (watched.state.revisions / f"{instances}.json").exists()
    assert not (watched.state.groups / "main/repository/coins-instances").exists()


def tampered(folder: Path) -> dict[str, str]:
    """Copy the golden set with the two classes' masks exchanged."""
    shutil.copytree(EXAMPLE / "golden/semantic", folder)
    golden = json.loads((folder / "golden.json").read_text())
    golden["cases"][0]["expected"]["MASKS"].reverse()
    (folder / "golden.json").write_text(json.dumps(golden))
    return {"uri": folder.as_uri(), "sha256": folder_digest(folder)}


BROKEN = {
    "a golden answer that the network does not give": (
        lambda folder: {"postprocess": smallest(152), "golden": tampered(folder / "golden")},
        ("GoldenPassed", "GoldenFailed"),
        r"coins\.png: MASKS of class 0: IoU 0\.\d+; at least 0\.98 is tolerated",
    ),
    "a network with another sha256": (
        lambda _: {"artifact": pinned(EXAMPLE / "coins-unet.onnx") | {"sha256": "0" * 64}},
        ("ArtifactVerified", "DigestMismatch"),
        r"sha256 of file:\S+/coins-unet\.onnx is 0717\w+; the resource says 0{64}",
    ),
    "a network of another family": (
        lambda _: {"artifact": pinned(EXAMPLE / "coins-yolo.onnx")},
        ("ArtifactVerified", "SignatureMismatch"),
        r"output",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_change_that_cannot_be_served_says_why_and_leaves_the_stable_revision(
    watched: Watched, edited: Edit, tmp_path: Path, case: str
) -> None:
    changes, (kind, reason), message = BROKEN[case]
    before, first_answer = stable(watched), answer(watched)

    apply_unread(watched, edited(**changes(tmp_path)))
    found = watched.becomes("coins", kind, "False", reason)
    refused = command(watched.running.state, "wait", "coins")

    assert re.search(message, found["message"])
    assert watched.condition("coins", "Degraded")["status"] == "True"
    assert (refused.returncode, refused.stdout) == (1, "")
    assert found["message"] in refused.stderr
    assert stable(watched) == before
    assert answer(watched) == first_answer
    assert watched.condition("coins", "Ready")["status"] == "True"


def answer(watched: Watched) -> tuple[str, int]:
    with Client(watched.running.url, retries=0) as client:
        found = client.segment(PHOTO, model="coins")
    return found.revision, found.areas["coin"]


def test_a_network_that_is_missing_is_served_once_it_is_there(watched: Watched, edited: Edit, tmp_path: Path) -> None:
    former, _ = stable(watched)
    network = onnx.load(EXAMPLE / "coins-unet.onnx")
    network.doc_string = uuid4().hex  # bytes of its own, so that no cache has them
    onnx.save(network, tmp_path / "there.onnx")
    artifact = pinned(tmp_path / "there.onnx") | {"uri": (tmp_path / "network.onnx").as_uri()}

    apply(watched, edited(artifact=artifact, keepPrevious="0s"))
    found = watched.becomes("coins", "ArtifactVerified", "False", "ArtifactMissing")
    assert found["message"] == f"'{artifact['uri']}' names nothing; an artifact is a regular file"
    assert answer(watched)[0] == former

    (tmp_path / "there.onnx").rename(tmp_path / "network.onnx")

    assert answer(watched)[0] in (former, promoted(watched, former))


def test_dropping_a_class_is_refused_unless_the_file_says_that_it_is_meant(watched: Watched, edited: Edit) -> None:
    before, _ = stable(watched)
    renamed = [{"id": 0, "name": "background"}, {"id": 1, "name": "token"}]

    apply(watched, edited(classes=renamed, keepPrevious="0s"))
    found = watched.becomes("coins", "Degraded", "True", "ClassesChanged")
    assert "coin" in found["message"]
    assert "set spec.allowClassChanges: true to allow the change" in found["message"]
    assert stable(watched)[0] == before

    apply(watched, edited(classes=renamed, keepPrevious="0s", allowClassChanges=True))
    promoted(watched, before)
    with Client(watched.running.url) as client:
        assert set(client.segment(PHOTO, model="coins").areas) == {"background", "token"}


def test_an_edit_that_changes_no_meaning_changes_nothing(watched: Watched, edited: Edit) -> None:
    file = edited(allowClassChanges=True)
    apply(watched, file)
    watched.command("wait", "coins")
    revision, generation = stable(watched), watched.manifest("coins")["metadata"]["generation"]
    document = yaml.safe_load(file.read_text())
    spec = dict(reversed(document["spec"].items())) | {"pool": "default", "output": {"maxDetections": 300}}
    file.write_text("# another comment\n" + yaml.safe_dump(document | {"spec": spec}, sort_keys=False))

    assert apply(watched, file) == "segmentationmodel/coins unchanged"

    assert watched.manifest("coins")["metadata"]["generation"] == generation
    assert stable(watched) == revision


def test_exposing_the_network_takes_effect_without_a_new_revision(watched: Watched, edited: Edit) -> None:
    settled = promoted_base(watched, edited)
    groups = watched.groups()
    client = tritonclient.grpc.InferenceServerClient(watched.running.url.removeprefix("http://"))

    def answers(status: str) -> bool:
        """Tell whether the configuration of the network is answered with a status.

        Between both it may be unavailable: the gateway knows it already or still, and no server has it loaded.
        """
        found = "StatusCode.OK"
        try:
            client.get_model_config("coins.network")
        except InferenceServerException as error:
            found = error.status()
            if found not in ("StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE"):
                raise
        return found == status

    with Load(watched.running.url, pause_s=0.05) as load:
        apply(watched, edited(allowClassChanges=True, expose=["network"]))
        until(lambda: answers("StatusCode.OK"), "coins.network is there")
        apply(watched, edited(allowClassChanges=True, expose=[]))
        until(lambda: answers("StatusCode.NOT_FOUND"), "coins.network is gone")
        until(lambda: not (watched.state.groups / settled[1] / "repository/coins.network").exists(), "it is unloaded")
        apply(watched, edited(allowClassChanges=True, expose=["network"]))
        until(lambda: answers("StatusCode.OK"), "coins.network is back")
        apply(watched, edited(allowClassChanges=True, expose=[]))
        until(lambda: answers("StatusCode.NOT_FOUND"), "coins.network is gone again")

    client.close()
    assert load.failures == []
    assert set(load.answers) == {settled[0]}
    assert stable(watched) == settled
    assert watched.groups() <= groups


def two_images(folder: Path) -> dict[str, str]:
    """Copy the golden set and add its one image a second time."""
    shutil.copytree(EXAMPLE / "golden/semantic", folder)
    golden = json.loads((folder / "golden.json").read_text())
    shutil.copy(folder / "coins.png", folder / "again.png")
    golden["cases"].append(golden["cases"][0] | {"image": "again.png"})
    (folder / "golden.json").write_text(json.dumps(golden))
    return {"uri": folder.as_uri(), "sha256": folder_digest(folder)}


def test_an_edited_golden_set_is_proved_in_place_and_one_that_fails_takes_nothing_from_callers(
    watched: Watched, edited: Edit, tmp_path: Path
) -> None:
    settled = promoted_base(watched, edited)
    groups, wrong, more = watched.groups(), tampered(tmp_path / "wrong"), two_images(tmp_path / "more")
    figures = f"golden set {more['sha256'][:12]}: every image (2) was answered within its tolerance"

    def edit(golden: dict[str, str]) -> None:
        apply_unread(watched, edited(allowClassChanges=True, golden=golden))

    with Load(watched.running.url, pause_s=0.1) as load:
        edit(more | {"sha256": "0" * 64})
        watched.becomes("coins", "GoldenPassed", "False", "DigestMismatch")
        edit(more | {"uri": (tmp_path / "nowhere").as_uri(), "sha256": "1" * 64})
        watched.becomes("coins", "GoldenPassed", "False", "ArtifactMissing")
        edit(wrong)
        refused = watched.becomes("coins", "GoldenPassed", "False", "GoldenFailed")
        waited = command(watched.running.state, "wait", "coins")
        assert re.search(r"coins\.png: MASKS of class 0: IoU 0\.\d+; at least 0\.98 is tolerated", refused["message"])
        assert watched.condition("coins", "Ready")["status"] == "True"
        assert watched.condition("coins", "Degraded")["reason"] == "GoldenFailed"
        assert (waited.returncode, refused["message"] in waited.stderr) == (1, True)

        promoted_base(watched, edited)
        watched.becomes("coins", "GoldenPassed", "True", "AnswersMatch")
        edit(more)
        watched.command("wait", "coins")
        assert watched.becomes("coins", "GoldenPassed", "True", "AnswersMatch")["message"] == figures

    assert load.failures == []
    assert set(load.answers) == {settled[0]}
    assert stable(watched) == settled
    assert watched.groups() <= groups

    # What a server starts with is the set that it was proved with last, and one that fails keeps it.
    edit(wrong)
    watched.becomes("coins", "GoldenPassed", "False", "GoldenFailed")
    watched.running.segserve("down")
    started = segserve(watched.running.state, "up", "--detach", "--port", watched.running.url.rpartition(":")[2])
    assert (started.returncode, "GoldenFailed" in started.stderr) == (1, True)
    watched.becomes("coins", "Ready", "True", "Serving")
    watched.becomes("coins", "GoldenPassed", "False", "GoldenFailed")
    edit(more)
    assert watched.becomes("coins", "GoldenPassed", "True", "AnswersMatch")["message"] == figures
    record = json.loads((watched.state.revisions / f"{settled[0]}.json").read_text())
    assert (record["golden"], "trial" in record) == (more, False)


def promoted_base(watched: Watched, edited: Edit) -> tuple[str, str]:
    """Serve the example's own revision again and return who holds it."""
    apply(watched, edited(allowClassChanges=True))
    watched.command("wait", "coins")
    return stable(watched)


def test_a_file_of_int8_is_rolled_out_by_the_golden_set_of_its_fp32_file(
    watched: Watched, edited: Edit, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(4):
        part = cv2.imdecode(np.frombuffer(PHOTO, np.uint8), cv2.IMREAD_COLOR)[40 * index :, 40 * index :]
        cv2.imwrite(str(tmp_path / f"photos/{index}.png"), part)
    former, file = stable(watched)[0], edited()

    watched.command("export", str(file), "--precision", "int8", "--images", str(tmp_path / "photos"))
    apply(watched, file.with_name("model-int8.yaml"))

    assert promoted(watched, former) != former
    artifact = watched.manifest("coins")["spec"]["artifact"]
    assert artifact == {**artifact, **pinned(tmp_path / "coins.int8.onnx")}
    with Client(watched.running.url) as client:
        assert client.segment(PHOTO, model="coins").areas["coin"] > 0
