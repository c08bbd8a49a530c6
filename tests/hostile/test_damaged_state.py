"""A file of the state folder is damaged, by a disk or an editor: it holds what it is about, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.deaths import SWEEP
from fakes.platform import Announced, Found, RecordedTraffic
from fakes.rollout_records import record
from segserve_builder.agent import secret
from segserve_builder.agent.cost import COSTS_FILE, CostLedger, ServerLook
from segserve_builder.agent.loop import ReportFile
from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_operator.adapters.local import fleet as fleet_module
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import GroupFolder, LocalFleet
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.loading import load
from segserve_operator.core.models.planning import TrafficPlan
from segserve_operator.core.world.event import Event
from segserve_operator.local_platform.supervisor import Supervisor
from segserve_operator.service import Service
from segserve_platform.cli.app import main

MODEL: Final = """
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: %s, annotations: {segserve.dev/retry: none}}
spec:
  artifact: {uri: "file:///network.onnx", sha256: "%s"}
  family: semantic-logits
  classes: [{id: 0, name: background}, {id: 1, name: coin}]
  preprocess: [{decode: {}}]
  postprocess: [{argmax: {}}]
"""
POOL: Final = """
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {name: default}
spec: {gateway: {port: 18080}}
"""
MODELS: Final = {"coins": "1" * 64, "parts": "2" * 64}
COMMANDS: Final = (
    ("get",),
    ("get", "-o", "wide"),
    ("get", "-o", "json"),
    ("describe", "coins"),
    ("why", "coins"),
    ("rollout", "status", "coins"),
    ("rollout", "list"),
    ("apply", "-f", "again.yaml"),
    ("delete", "coins", "--no-wait"),
)
PASSES: Final = 4


class Fleet(LocalFleet):
    """The real files of groups, whose processes sleep and whose agents hold what they are assigned."""

    async def start(self, group: str, replicas: int = 1) -> None:
        folder = self._folder(group)
        folder.root.mkdir(parents=True, exist_ok=True)
        if not fleet_module._has_ports(folder):
            self._choose_ports(folder)
        if not fleet_module.has_secret(folder):
            fleet_module.write_private(folder.secret, "s" * 43)
        ports, word = fleet_module._read_ports(folder), folder.secret.read_text()
        arguments = (f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}")
        hidden = dict(option.split("=", 1) for option in secret.server_arguments(word))
        for process, environment in (("triton", hidden), ("agent", {})):
            record = folder.record(process)
            if not processes.is_alive(processes.read_record(record)):
                processes.start(
                    [sys.executable, "-S", "-c", "import time; time.sleep(600)", *arguments],
                    record=record,
                    log=folder.log(process),
                    environment={**os.environ, **environment},
                    state=self.state.root,
                )

    def work(self) -> None:
        for root in self.state.groups.iterdir():
            folder = GroupFolder(root)
            held = [
                ModelReport(model=each.model, revision=each.revision, state=ModelState.READY, loaded=True)
                for each in self._assignment(root.name, folder).models
            ]
            if folder.report.is_dir():
                folder.report.rename(folder.report.with_name("moved"))
            ReportFile(root).write(True, tuple(held))


@dataclass
class Platform:
    """A platform on a real state folder, with processes in name only."""

    root: Path
    traffic: RecordedTraffic = field(default_factory=RecordedTraffic)

    def __post_init__(self) -> None:
        self.state = StateFolder(self.root)
        self.store = LocalStore(self.state)
        nothing: Any = None
        self.fleet = Fleet(self.state, nothing, self.root / "cache", nothing)
        self.service = Service(
            store=self.store,
            fleet=self.fleet,
            traffic=self.traffic,
            clock=time.time,
            check_runner=Found(),
            announcer=Announced(),
        )

    def apply(self, text: str) -> None:
        (resource,) = load(text, "model.yaml")
        manifest = resource.to_dict()
        manifest.pop("status", None)
        self.store.apply(resource, manifest)

    def passes(self, count: int = PASSES) -> None:
        async def run() -> None:
            for _ in range(count):
                await self.service.run_once()
                if self.state.groups.is_dir():
                    self.fleet.work()

        asyncio.run(run())

    def write_record(self) -> None:
        supervisor: Any = object.__new__(Supervisor)
        supervisor.state, supervisor.gateway = self.state, _Gateway()
        Supervisor._write_record(supervisor, observed=True)

    def condition(self, model: str, kind: str) -> Mapping[str, Any]:
        status = self.store.get("SegmentationModel", model)["status"]
        return next(each for each in status["conditions"] if each["type"] == kind)


class _Gateway:
    url = "http://127.0.0.1:18080"
    ca_file = None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TrafficPlan]]:
    """A state folder with a file of each kind, of a platform that serves two models, and its traffic plan."""
    platform = Platform(tmp_path_factory.mktemp("whole"))
    platform.state.create()
    platform.apply(POOL)
    for name, digit in MODELS.items():
        platform.apply(MODEL % (name, digit))
    platform.passes(8)
    rollout = replace(record(), model="coins")
    asyncio.run(platform.store.save_rollout(rollout))
    asyncio.run(platform.store.emit("coins", Event("Normal", "Tested", "a word")))
    ledger = CostLedger(platform.state.groups / "main" / COSTS_FILE)
    ledger.add(ServerLook(1.0, {}, {}), ())
    platform.write_record()
    assert platform.traffic.plan is not None
    assert {name: platform.condition(name, "Ready")["status"] for name in MODELS} == dict.fromkeys(MODELS, "True")
    yield platform.root, platform.traffic.plan
    processes.end_marked_processes(platform.root, grace_s=0.1)


def replaced_nodes(
    value: Any, others: tuple[Any, ...] = (None, 7, -1e999, "x", [], {}, ["x"], {"x": "y"})
) -> Iterator[Any]:
    """Yield a document with each of its parts, at each level, in turn taken for something else."""
    yield from others
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        for other in replaced_nodes(part):
            copied = dict(value) if isinstance(value, dict) else list(value)
            copied[key] = other
            yield copied
        if isinstance(value, dict):
            yield {other: part for other, part in value.items() if other != key}


def other_types(path: Path) -> list[bytes]:
    """Return a file's document with other types in it; nothing for a file that is no document."""
    text = path.read_text()
    if path.suffix == ".json":
        return [json.dumps(each).encode() for each in replaced_nodes(json.loads(text))]
    if path.suffix == ".yaml":
        return [yaml.safe_dump(each).encode() for each in replaced_nodes(yaml.safe_load(text))]
    return []


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path) -> None:
    path.chmod(0)


def huge(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(2**40)


DAMAGES: Final[dict[str, Callable[[Path], object]]] = {
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "no JSON and no YAML": lambda path: path.write_bytes(b"}:{ ["),
    "control characters": lambda path: path.write_bytes(b"\0\1\2"),
    "nothing": lambda path: path.write_bytes(b""),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deeply nested": lambda path: path.write_bytes(b"[" * 100_000),
    "a huge number": lambda path: path.write_bytes(b"9" * 10_000),
    "a list": lambda path: path.write_bytes(b"[1]"),
    "a terabyte": huge,
    "a folder in its place": folder_instead,
    "unreadable": unreadable,
}


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def run(root: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command, which may fail, but not with a traceback."""
    monkeypatch.setenv("SEGSERVE_STATE", str(root))
    monkeypatch.setattr(sys, "argv", ["segserve", *arguments])
    with pytest.raises(SystemExit):
        main()


def check(damaged: str, damage: Callable[[Path], object], whole: tuple[Path, TrafficPlan], folder: Path) -> None:
    """Damage a file under a platform that runs, and under one that starts: the other model serves, callers as well."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole[0], folder)
    running = Platform(folder, RecordedTraffic(whole[1]))
    running.passes(1)
    path = folder / damaged
    damage(path)
    os.utime(path, ns=(1, time.time_ns()))

    for platform in (running, Platform(folder, RecordedTraffic(whole[1]))):
        platform.passes()
        of_model = damaged.split("/")[2] if damaged.startswith("objects/SegmentationModel") else ""
        for name in MODELS:
            routed = {route.model: route for route in platform.traffic.plan.routes}  # type: ignore[union-attr]
            assert any(share.endpoints for share in routed[name].shares), f"{name} has no server"
            former = next(route for route in whole[1].routes if route.model == name)
            assert (routed[name].access, routed[name].limits) == (former.access, former.limits)
            degraded = platform.condition(name, "Degraded")
            if name != of_model:
                assert platform.condition(name, "Ready")["status"] == "True"
                assert degraded["status"] == "False", degraded["message"]
            elif degraded["status"] == "True" and degraded["reason"] in ("FileDamaged", "StatusUnreadable"):
                assert str(path) in degraded["message"]


def damage_and_check(
    number: int,
    damaged: str,
    damage: Callable[[Path], object],
    whole: tuple[Path, TrafficPlan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / str(number)
    try:
        check(damaged, damage, whole, folder)
    finally:
        processes.end_marked_processes(folder, grace_s=0.1)
    (folder / "again.yaml").write_text(MODEL % ("coins", MODELS["coins"]))
    monkeypatch.chdir(folder)
    for command in COMMANDS:
        run(folder, *command, monkeypatch=monkeypatch)


@SWEEP
def test_a_damaged_file_holds_itself_alone(
    every: bool, whole: tuple[Path, TrafficPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, damages = files_of(whole[0]), list(DAMAGES.values())
    # The sample has each file and each damage.
    pairs = [(file, damage) for file in files for damage in damages]
    sample = [(file, damages[index % len(damages)]) for index, file in enumerate(files)]
    for number, (damaged, damage) in enumerate(pairs if every else sample):
        damage_and_check(number, damaged, damage, whole, tmp_path, monkeypatch)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_document_with_another_type_in_it_holds_itself_alone(
    data: st.DataObject, whole: tuple[Path, TrafficPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [file for file in files_of(whole[0]) if file.endswith((".json", ".yaml"))]
    damaged = data.draw(st.sampled_from(documents))
    content = data.draw(st.sampled_from(other_types(whole[0] / damaged)))
    damage_and_check(0, damaged, lambda path: path.write_bytes(content), whole, tmp_path, monkeypatch)
