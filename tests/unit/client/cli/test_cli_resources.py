"""Resource files on this machine: folders, dry runs, addresses that lead nowhere, and a platform that is not up."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from segserve.platform import Local
from segserve_builder.sources.cache import object_path
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import StateFolder, write_yaml
from segserve_platform.platforms.advice import ADVICE
from segserve_platform.platforms.port import MODEL
from segserve_platform.platforms.selection import open_platform

from .conftest import Command, model

DOWN = "no platform is up on this machine: start it with `segserve up`"
STORED = f"stored, but {DOWN}\n"
TEXT = """\
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: %s}
spec:
  artifact: {uri: %s, sha256: "%s"}
  family: semantic-logits
  classes: [{id: 0, name: background}, {id: 1, name: coin}]
  preprocess: [{decode: {}}]
  postprocess: [{argmax: {}}]
"""
RECORD = """\
apiVersion: segserve.dev/v1alpha1
kind: SegmentationRollout
metadata: {name: coins-1}
spec: {model: coins, stable: a, candidate: b, policy: {}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network, of a platform that is not up."""
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SEGSERVE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(NET)
    monkeypatch.chdir(folder)
    return folder


NET = b"net"


def text(name: str = "coins", uri: str = "net.onnx", sha256: str = hashlib.sha256(NET).hexdigest()) -> str:
    return TEXT % (name, uri, sha256)


def uri_of(name: str, state: Path) -> str:
    return str(open_platform(Local(state)).model(name)["spec"]["artifact"]["uri"])


def test_a_folder_is_all_its_resource_files_by_name_without_subfolders(command: Command, here: Path) -> None:
    for path, name in (("b.yaml", "b"), ("a.yml", "a"), ("sub/c.yaml", "c"), (".hidden/d.yaml", "d")):
        (here / path).parent.mkdir(exist_ok=True)
        (here / path).write_text(text(name, str(here / "net.onnx")))
    (here / "notes.txt").write_text("no resource")

    assert command("apply", "-f", here) == (0, "segmentationmodel/a created\nsegmentationmodel/b created\n", STORED)
    _, printed, _ = command("apply", "-f", here, "--recursive")
    assert printed.split()[::2] == ["segmentationmodel/a", "segmentationmodel/b", "segmentationmodel/c"]
    assert command("delete", "-f", here / "sub")[1] == "segmentationmodel/c deleted\n"


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_a_file_of_another_digest_is_refused_unless_the_platform_has_the_right_one(
    command: Command, here: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    wanted = hashlib.sha256(b"former").hexdigest()
    (here / "model.yaml").write_text(text(sha256=wanted))

    code, _, complaint = command("apply", "-f", "model.yaml", *how)

    seen = f"spec.artifact.sha256 is {wanted}, but {here / 'net.onnx'} has {hashlib.sha256(NET).hexdigest()}"
    assert (code, seen in complaint) == (1, True)
    assert not (tmp_path / "state/objects/SegmentationModel").exists()

    cached = object_path(tmp_path / "cache", wanted)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"former")
    code, _, complaint = command("apply", "-f", "model.yaml", *how)
    assert (code, f"{seen}; the copy of {wanted[:12]} in the cache is used" in complaint) == (0, True)


def test_a_folder_without_resource_files_is_an_error(command: Command, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub/model.yaml").write_text(text())

    assert command("apply", "-f", here) == (
        1, "", f"error: {here}: the folder has no *.yaml or *.yml; --recursive includes its subfolders\n",
    )  # fmt: skip


def test_a_resource_in_two_files_is_refused_with_both(command: Command, here: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (here / name).write_text(text())

    assert command("apply", "-f", ".") == (
        1, "", "error: b.yaml: segmentationmodel/coins occurs twice, first in a.yaml\n",
    )  # fmt: skip


def test_a_record_of_a_rollout_is_not_applied(command: Command, here: Path) -> None:
    (here / "record.yaml").write_text(RECORD)

    code, _, complaint = command("apply", "-f", "record.yaml")

    assert (code, "only the platform writes" in complaint) == (1, True)


def test_a_dry_run_says_what_would_change_and_changes_nothing(command: Command, here: Path, tmp_path: Path) -> None:
    (here / "model.yaml").write_text(text())
    created = command("apply", "-f", "model.yaml", "--dry-run")
    assert not (tmp_path / "state/objects/SegmentationModel").exists()
    command("apply", "-f", "model.yaml")
    stored = open_platform(Local(tmp_path / "state")).model("coins")
    unchanged = command("apply", "-f", "model.yaml", "--dry-run")
    edited = yaml.safe_load(text())
    edited["spec"] |= {"keepPrevious": "2h", "postprocess": [{"argmax": {}}, {"fillHoles": {}}]}
    (here / "model.yaml").write_text(yaml.safe_dump(edited))

    code, printed, complaint = command("apply", "-f", "model.yaml", "--dry-run")

    assert created[0] == 0
    assert created[1].startswith("segmentationmodel/coins created (dry run): revision coins-")
    assert unchanged == (0, "segmentationmodel/coins unchanged (dry run)\n", "")
    assert (code, complaint) == (0, "")
    head, *fields = printed.splitlines()
    assert head.startswith("segmentationmodel/coins configured (dry run): new revision coins-")
    assert '  ~ spec.keepPrevious: "1h" -> "2h"' in fields
    assert any(line.startswith('  + spec.postprocess[1]: {"fillHoles": ') for line in fields)
    assert open_platform(Local(tmp_path / "state")).model("coins") == stored


def test_a_dry_run_says_that_a_change_makes_no_new_revision(command: Command, here: Path) -> None:
    (here / "model.yaml").write_text(text())
    command("apply", "-f", "model.yaml")
    (here / "model.yaml").write_text(text() + "  keepPrevious: 2h\n")

    assert "(dry run): stays revision coins-" in command("apply", "-f", "model.yaml", "--dry-run")[1]


def test_a_dry_run_says_what_serves_already_what_is_kept_and_what_is_refused(
    command: Command, here: Path, tmp_path: Path
) -> None:
    (here / "model.yaml").write_text(text())
    command("apply", "-f", "model.yaml")
    status = StateFolder(tmp_path / "state").objects / "SegmentationModel/coins/status.yaml"
    other = text().replace("argmax: {}", "argmax: {}}, {fillHoles: {}")
    renamed = text().replace("name: coin}", "name: penny}")
    printed: dict[str, Any] = {}
    for title, changed in (("other", other), ("renamed", renamed)):
        (here / "model.yaml").write_text(changed)
        printed[title] = command("apply", "-f", "model.yaml", "--dry-run")[1]
    serving, following = re.findall(r"coins-[0-9a-f]{10}", printed["other"])[::-1]
    for role in ("stable", "previous"):
        write_yaml(status, {"roles": {role: {"revision": following}}, "weight": 100})
        (here / "model.yaml").write_text(other)
        printed[role] = command("apply", "-f", "model.yaml", "--dry-run")[1]
    write_yaml(status, {"roles": {"stable": {"revision": serving}}, "weight": 100})
    (here / "model.yaml").write_text(renamed)
    printed["refused"] = command("apply", "-f", "model.yaml", "--dry-run")[1]
    (here / "model.yaml").write_text(renamed + "  allowClassChanges: true\n")
    printed["allowed"] = command("apply", "-f", "model.yaml", "--dry-run")[1]

    assert f": revision {following}, which serves" in printed["stable"]
    assert f": revision {following}, which is kept loaded" in printed["previous"]
    assert "refused" not in printed["renamed"] + printed["allowed"]
    assert ", refused (ClassesChanged): class 'coin' is dropped; its id 1 now means 'penny'" in printed["refused"]


def test_a_dry_run_shows_which_models_follow_the_one_that_they_name(command: Command, here: Path) -> None:
    small, heavy = yaml.safe_load(text()), yaml.safe_load(text())
    small["metadata"]["name"] = "small"
    heavy["spec"]["cascade"] = {"light": {"model": "small"}, "when": "confidence", "threshold": 0.5}
    (here / "both.yaml").write_text(yaml.safe_dump_all([small, heavy]))
    command("apply", "-f", "both.yaml")
    small["spec"]["postprocess"] = [{"argmax": {}}, {"fillHoles": {}}]
    (here / "small.yaml").write_text(yaml.safe_dump(small))
    (here / "both.yaml").write_text(yaml.safe_dump_all([small, heavy]))

    alone = command("apply", "-f", "small.yaml", "--dry-run")[1]
    together = command("apply", "-f", "both.yaml", "--dry-run")[1]

    assert "segmentationmodel/coins follows (dry run): new revision coins-" in alone
    assert "segmentationmodel/coins unchanged (dry run): new revision coins-" in together


def test_a_dry_run_validates_every_document(command: Command, here: Path) -> None:
    (here / "model.yaml").write_text(text() + "---\n" + text("roads").replace("argmax", "argmaxx"))

    code, printed, complaint = command("apply", "-f", "model.yaml", "--dry-run")

    assert (code, printed) == (1, "")
    assert "unknown stage 'argmaxx' (did you mean 'argmax'?)" in complaint


def test_a_resource_that_is_being_deleted_would_be_configured(command: Command, here: Path) -> None:
    (here / "model.yaml").write_text(text())
    command("apply", "-f", "model.yaml")
    command("delete", "coins")

    assert command("apply", "-f", "model.yaml", "--dry-run")[1].startswith("segmentationmodel/coins configured")


def test_addresses_from_standard_input_are_relative_to_the_current_folder_or_a_base(
    command: Command, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO(text()))
    assert command("apply", "-f", "-")[0] == 0
    assert uri_of("coins", tmp_path / "state") == (here / "net.onnx").as_uri()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", StringIO(text("based")))
    assert command("apply", "-f", "-", "--base", "here")[0] == 0
    assert uri_of("based", tmp_path / "state") == (here / "net.onnx").as_uri()


def test_an_address_from_standard_input_that_leads_nowhere_is_refused(
    command: Command, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", StringIO(text()))

    assert command("apply", "-f", "-") == (
        1, "", f"error: segmentationmodel/coins: spec.artifact.uri: {tmp_path / 'net.onnx'} does not exist; relative "
        "addresses from standard input are relative to the current folder: set another one with --base FOLDER\n",
    )  # fmt: skip
    assert open_platform(Local(tmp_path / "state")).models() == []


def test_a_misspelt_address_is_told_even_if_the_cache_has_the_file(
    command: Command, here: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "cache/sha256" / ("2" * 64)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"net")
    (here / "model.yaml").write_text(text("coins", "nett.onnx") + "---\n" + text("roads", "nett.onnx", "2" * 64))

    code, _, complaint = command("apply", "-f", "model.yaml")

    place = f"spec.artifact.uri: {here / 'nett.onnx'} does not exist"
    assert code == 0
    assert f"warning: segmentationmodel/coins: {place}; the model cannot be served until it does\n" in complaint
    assert (
        f"warning: segmentationmodel/roads: {place}; the copy in the cache is used as long as it is kept\n" in complaint
    )


def test_a_file_in_an_archive_is_looked_for_in_the_archive(command: Command, here: Path, tmp_path: Path) -> None:
    (here / "nets.tar").write_bytes(b"")
    (here / "model.yaml").write_text(text("coins", '"nets.tar#a b/net.onnx"'))

    assert command("apply", "-f", "model.yaml")[2] == STORED
    assert uri_of("coins", tmp_path / "state") == f"{(here / 'nets.tar').as_uri()}#a%20b/net.onnx"


def test_a_request_by_annotation_that_would_be_ignored_is_told(command: Command, here: Path) -> None:
    annotated = yaml.safe_load(text())
    annotated["metadata"]["annotations"] = {"segserve.dev/abort": "coins-0000000000", "example.org/note": "x"}
    (here / "model.yaml").write_text(yaml.safe_dump(annotated))

    code, _, complaint = command("apply", "-f", "model.yaml")

    assert code == 0
    assert complaint == (
        "warning: segmentationmodel/coins: the annotation segserve.dev/abort: coins-0000000000 is ignored: "
        f"abort: no rollout is in progress\n{STORED}"
    )


def test_models_of_a_platform_that_is_not_up_are_stopped_and_not_unknown(command: Command, here: Path) -> None:
    (here / "model.yaml").write_text(text())
    command("apply", "-f", "model.yaml")

    code, printed, complaint = command("get")

    assert (code, complaint) == (0, f"{DOWN}\n")
    assert printed.splitlines()[1].split()[:2] == ["coins", "Stopped"]
    assert "Unknown" not in command("get", "-o", "wide")[1]
    assert yaml.safe_load(command("get", "coins", "-o", "yaml")[1])["kind"] == MODEL
    assert command("describe", "coins")[2] == f"{DOWN}\n"


def test_a_model_that_serves_and_whose_newest_spec_failed_has_a_line_of_its_own(
    command: Command, here: Path, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path / "state")
    (here / "model.yaml").write_text(text())
    command("apply", "-f", "model.yaml")
    conditions = [
        {"type": "Ready", "status": "True", "reason": "Serving", "message": ""},
        {"type": "Degraded", "status": "True", "reason": "GoldenFailed", "message": "1 of 2 images differ"},
    ]
    status = state.objects / "SegmentationModel/coins/status.yaml"
    write_yaml(status, {"observedGeneration": 1, "conditions": conditions})
    record = {"process": asdict(ProcessRecord.of(os.getpid())), "url": "http://127.0.0.1:1", "observed": True}
    state.platform.write_text(json.dumps(record))

    printed = command("get")[1].splitlines()

    assert printed[1].split()[:2] == ["coins", "True"]
    assert printed[2:] == [f"coins: GoldenFailed: 1 of 2 images differ; {ADVICE['GoldenFailed']}"]


def test_wait_does_not_wait_for_a_platform_that_is_not_up(command: Command, here: Path) -> None:
    (here / "model.yaml").write_text(text())
    command("apply", "-f", "model.yaml")

    for target in ("Ready", "delete"):
        assert command("wait", "coins", "--for", target) == (1, "", f"error: {DOWN}; nothing would change coins\n")
    assert command("wait", "nope", "--for", "delete")[0] == 0
    assert "no SegmentationModel 'coin' (did you mean 'coins'?)" in command("wait", "coin")[2]


def test_without_the_extra_of_this_machine_no_platform_is_up(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segserve_operator.local_platform.supervisor", None)
    (here / "model.yaml").write_text(text())

    assert command("apply", "-f", "model.yaml") == (0, "segmentationmodel/coins created\n", STORED)
    assert command("get")[0] == 0
    assert command("version")[1].endswith("platform: none is up on this machine; start it with `segserve up`\n")


PLATFORM = {
    *("google.protobuf", "cryptography", "segserve_builder.stages", "segserve_operator.core.gates"),
    *("segserve_operator.local_platform.supervisor", "segserve.tiled", "rich.markdown", "pygments", "click"),
}
CLIENT = {"numpy", "httpx", "segserve.client", "asyncio", "pydantic"}
SPARED = {
    "--help": PLATFORM | CLIENT | {"segserve", "yaml", "psutil", "segserve_platform.cli.options"},
    "--version": PLATFORM | CLIENT | {"segserve", "yaml", "psutil", "rich", "segserve_platform.cli.options"},
    "version": PLATFORM | CLIENT | {"rich", "psutil", "segserve_platform.cli.resources"},
    "get": PLATFORM | CLIENT | {"psutil", "segserve_platform.cli.predict", "segserve_platform.cli.lifecycle"},
    "get coins -o yaml": PLATFORM | CLIENT - {"pydantic"},
    "logs coins": PLATFORM | CLIENT | {"rich", "segserve_platform.cli.lifecycle"},
    "predict coins photo.png --url http://127.0.0.1:1": PLATFORM | {"segserve_operator", "psutil", "pydantic"},
    "down": PLATFORM | CLIENT | {"rich", "segserve_platform.cli.resources"},
}
"""Modules, or packages, that commands do without: their imports take longer than these commands may."""


@pytest.mark.parametrize("arguments", SPARED)
def test_a_short_command_imports_only_what_it_uses(here: Path, tmp_path: Path, arguments: str) -> None:
    folder = here.parent / "state/objects/SegmentationModel/coins"
    folder.mkdir(parents=True)
    stored = model("coins")
    write_yaml(folder / "status.yaml", stored.pop("status"))
    write_yaml(folder / "spec.yaml", stored)
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    script = (
        "import sys; from segserve_platform.cli.app import main; sys.argv = ['segserve', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print(*(name for name, module in sys.modules.items() if module), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )

    loaded = set(done.stderr.splitlines()[-1].split())
    assert "segserve_platform.cli.app" in loaded, done.stderr
    assert not loaded & SPARED[arguments], done.stderr[:200]
