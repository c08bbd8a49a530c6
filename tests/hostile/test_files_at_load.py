"""Somebody changes files between their verification and their load: Triton loads what was verified, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes.agent_group import assigned, write_network
from segserve_builder.agent.runner import ActionResult, ActionRunner
from segserve_builder.agent.server import Repository
from segserve_builder.agent.state import AssignedRevision, LoadStep, Prepare, Prepared, RepairStep
from segserve_builder.render import published
from segserve_builder.sources.cache import object_path


@dataclass
class Loads:
    """A server that loads whatever is in its repository; `meanwhile` happens during a load."""

    loaded: set[str] = field(default_factory=set)
    meanwhile: Callable[[], None] = lambda: None

    def load(self, name: str) -> None:
        self.meanwhile()
        self.loaded.add(name)

    def unload(self, name: str) -> None:
        self.loaded.discard(name)


@dataclass
class Server:
    """An agent's runner with one published revision, and the files of its network."""

    runner: ActionRunner
    triton: Loads
    revision: AssignedRevision
    prepared: Prepared

    @property
    def network(self) -> str:
        return self.prepared.tree.networks[0]

    @property
    def folder(self) -> Path:
        return self.runner.repository.root / self.network

    @property
    def file(self) -> Path:
        (path,) = self.folder.rglob("model.onnx")
        return path

    @property
    def cached(self) -> Path:
        return object_path(self.runner.cache, self.revision.spec.artifact.sha256)

    def prepare(self) -> ActionResult:
        return self.runner.carry_out(Prepare(self.revision.revision, "coins"), self.revision, None)

    def load(self) -> ActionResult:
        return self.runner.carry_out(LoadStep(self.network), None, None)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    revision = AssignedRevision.of(assigned("coins", tmp_path / "a.onnx", write_network(tmp_path / "a.onnx", 100.0)))
    triton: Any = Loads()
    runner = ActionRunner(triton, Repository(tmp_path / "repository"), tmp_path / "cache", tmp_path / "log")
    result = runner.carry_out(Prepare(revision.revision, "coins"), revision, None)
    assert result.prepared is not None, result.failure
    return Server(runner, triton, revision, result.prepared)


def other_bytes(path: Path) -> None:
    """Write other bytes of the same size, as who wants to stay unnoticed."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def add_code(server: Server) -> None:
    (server.file.parent / "helper.py").write_text("import os")


def link_elsewhere(server: Server) -> None:
    elsewhere = server.runner.cache / "elsewhere"
    elsewhere.write_bytes(server.file.read_bytes())
    file = server.file
    file.unlink()
    file.symlink_to(elsewhere)


CHANGES: dict[str, Callable[[Server], None]] = {
    "other bytes of the same size": lambda server: other_bytes(server.file),
    "another file beside it": add_code,
    "a link": link_elsewhere,
    "no file": lambda server: server.file.unlink(),
    "another configuration": lambda server: other_bytes(
        server.runner.repository.root / server.network / "config.pbtxt"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before its first load", "after a load", "during a load"])
def test_a_changed_step_is_not_loaded_and_is_published_again(server: Server, change: str, when: str) -> None:
    if when == "after a load":
        assert server.load().failure is None
    if when == "during a load":
        server.triton.meanwhile = lambda: CHANGES[change](server)
    else:
        CHANGES[change](server)
    server.triton.loaded.clear()

    failure = server.load().failure

    assert (failure.reason, failure.retryable) == ("DigestMismatch", True)
    assert server.network in failure.message
    assert not server.triton.loaded
    server.triton.meanwhile = lambda: None
    assert server.prepare().failure is None
    assert server.load().failure is None
    assert server.file.read_bytes() == Path(server.revision.spec.artifact.uri.removeprefix("file://")).read_bytes()


def test_an_artifact_that_changed_in_the_cache_is_fetched_again(server: Server) -> None:
    server.runner.steps.remove(server.network)
    other_bytes(server.cached)
    server.prepare()

    assert server.load().failure is not None
    assert server.prepare().failure is None
    assert server.load().failure is None


def test_a_step_that_is_repaired_is_compared_before(server: Server) -> None:
    assert server.load().failure is None
    other_bytes(server.file)

    failure = server.runner.carry_out(RepairStep(server.network), None, None).failure

    assert failure.reason == "DigestMismatch"


def test_unchanged_files_are_hashed_once_in_a_process(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    real = published.is_file_of
    monkeypatch.setattr(published, "is_file_of", lambda path, digest: hashed.append(path) or real(path, digest))

    for _ in range(3):
        assert server.load().failure is None
        assert server.runner.carry_out(RepairStep(server.network), None, None).failure is None

    assert hashed == [server.file]
