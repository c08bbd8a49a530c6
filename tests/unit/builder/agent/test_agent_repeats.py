"""An agent beside a Triton that accepts calls and does nothing: it goes on, and ever more slowly."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import pytest

from fakes.agent_group import assigned, write_network
from segserve_builder.agent import loop
from segserve_builder.agent.loop import TICK_S, Agent
from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelState
from segserve_builder.agent.runner import ActionRunner
from segserve_builder.agent.server import Repository, ServerObserver, TritonServer
from segserve_builder.agent.state import Ensemble
from segserve_common.files import replace_file

CALLS: Final = [name for name, each in vars(TritonServer).items() if callable(each) and name[0] != "_"]
MINUTES: Final = 2
NOTHING: Final[dict[str, Any]] = {
    "states": {},
    "ensemble": Ensemble("", frozenset()),
    "devices": frozenset(),
    "answered": 0,
    "counts": {},
    "infer": {},
}
"""What a query is answered with by a server that does nothing."""


@dataclass
class Triton:
    """A server that loads and unloads as Triton does: an ensemble with its steps, and only whole ones are unloaded.

    Calls in `ignored` are accepted, and nothing happens.
    """

    repository: Repository
    ignored: set[str] = field(default_factory=set)
    ready: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    ended: int = 0

    def __getattribute__(self, name: str) -> Any:
        if name not in CALLS:
            return object.__getattribute__(self, name)
        self.calls[name] += 1
        if name in self.ignored:
            return lambda *_, **__: NOTHING.get(name)
        return object.__getattribute__(self, name)

    def states(self) -> dict[str, str]:
        names = self.repository.folders() | self.ready
        return {name: "READY" if name in self.ready else "UNAVAILABLE" for name in names}

    def ensemble(self, name: str) -> Ensemble:
        return self.repository.ensembles()[name]

    def load(self, name: str) -> None:
        ensemble = self.repository.ensembles().get(name)
        self.ready |= {name, *(ensemble.steps if ensemble is not None else ())}

    def unload(self, name: str, *, load_first: bool = False) -> None:
        if load_first:
            self.load(name)
        ensemble = self.repository.ensembles().get(name)
        if ensemble is None or ensemble.steps <= self.ready:
            self.ready.discard(name)

    def infer(self, model: str, *_: object) -> dict[str, Any]:
        return {"REVISION": np.array([self.ensemble(model).revision.encode()])}

    def devices(self, _: str) -> frozenset[str]:
        return frozenset({"cpu"})


@dataclass
class Clock:
    now_s: float = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


class AtOnce:
    """Workers that have done an action before the next line."""

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        call(*arguments)


@dataclass
class Pod:
    """An agent and its server; the agent's time passes as its loop lets it pass."""

    folder: Path
    clock: Clock
    triton: Triton = field(init=False)
    agent: Agent = field(init=False)

    def __post_init__(self) -> None:
        repository = Repository(self.folder / "repository")
        self.triton = Triton(repository)
        server = cast(TritonServer, self.triton)
        runner = ActionRunner(server, repository, self.folder / "cache", self.folder / "log")
        observer = ServerObserver(server, repository, None)
        cast(Any, observer).end_server = self.end_server
        self.agent = Agent(self.folder, runner, observer)
        cast(Any, self.agent)._workers = AtOnce()

    def end_server(self) -> None:
        self.triton.ended += 1
        self.triton.ready.clear()

    def assign(self, *models: AssignedModel) -> None:
        replace_file(self.folder / "assignment.json", json.dumps(Assignment(models=models).to_json()))

    def passes(self, seconds: float) -> None:
        until_s = self.clock.now_s + seconds
        while self.clock.now_s < until_s:
            self.agent._wake.clear()
            self.agent._pass()
            # An action that has ended begins the next pass.
            self.clock.now_s += 0.005 if self.agent._wake.is_set() else TICK_S

    @property
    def models(self) -> dict[str, ModelState]:
        return {model.model: model.state for model in self.agent.health.models}


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return Pod(tmp_path, clock)


@pytest.fixture
def coins(tmp_path: Path) -> AssignedModel:
    return assigned("coins", tmp_path / "a.onnx", write_network(tmp_path / "a.onnx", 100.0))


@pytest.mark.parametrize("since", ["the start", "it serves"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_is_accepted_and_ignored_is_not_repeated_without_a_pause(
    call: str, since: str, pod: Pod, coins: AssignedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pod.assign(coins)
    if since == "it serves":
        pod.passes(5)
        assert pod.models == {"coins": ModelState.READY}
    pod.triton.ignored.add(call)

    for assignment in ((coins,), ()):
        pod.triton.calls.clear()
        caplog.clear()
        pod.assign(*assignment)
        pod.passes(MINUTES * 60)

        # Each look at the server has a query for its index, and each probe a few calls.
        looks, changes = MINUTES * 60 / TICK_S, pod.triton.calls["load"] + pod.triton.calls["unload"]
        assert pod.triton.calls.total() < 3 * looks
        assert changes < 30 * MINUTES
        assert len(caplog.records) < 40 * MINUTES


def test_an_ensemble_that_is_loaded_without_some_of_its_steps_is_unloaded_after_all(
    pod: Pod, coins: AssignedModel
) -> None:
    pod.assign(coins)
    pod.passes(5)
    steps = pod.triton.ensemble("coins").steps
    pod.triton.ready -= {sorted(steps)[0]}
    pod.agent._assignment_file.read = tuple

    pod.passes(10)

    assert not pod.triton.ready
    assert not pod.triton.repository.folders()
    assert not pod.triton.ended


def test_a_server_that_unloads_nothing_is_ended_if_it_serves_nothing_else(
    pod: Pod, coins: AssignedModel, tmp_path: Path
) -> None:
    parts = assigned("parts", tmp_path / "b.onnx", write_network(tmp_path / "b.onnx", 50.0))
    pod.assign(coins, parts)
    pod.passes(5)
    pod.triton.ignored.add("unload")

    pod.assign(parts)
    pod.passes(60)
    assert not pod.triton.ended
    assert pod.models == {"coins": ModelState.UNLOADING, "parts": ModelState.READY}

    pod.assign()
    pod.passes(60)
    assert pod.triton.ended
    assert pod.models == {}


def test_a_process_that_has_ended_and_an_assignment_end_the_rest_of_an_agent(pod: Pod, coins: AssignedModel) -> None:
    lost = set[str]()
    watch = SimpleNamespace(server_runs=lambda: True, short_of=lambda needed: lost & needed.keys())
    pod.assign(coins)
    assert not pod.agent._is_at_rest
    pod.passes(5)
    cast(Any, pod.agent)._observer._processes = watch
    assert pod.agent._is_at_rest

    (prepared,) = pod.agent._state.published()
    lost.add(prepared.steps[-1])
    assert not pod.agent._is_at_rest
    lost.clear()
    assert pod.agent._is_at_rest
    watch.server_runs = lambda: False
    assert not pod.agent._is_at_rest
    watch.server_runs = lambda: True
    pod.assign(coins)
    assert not pod.agent._is_at_rest


def test_a_model_that_is_assigned_as_before_is_the_same_object(tmp_path: Path, coins: AssignedModel) -> None:
    file = loop.AssignmentFile(tmp_path / "assignment.json")

    def read(*models: AssignedModel) -> AssignedModel:
        replace_file(tmp_path / "assignment.json", json.dumps(Assignment(models=models).to_json()))
        return (file.read() or ())[0].spec

    first = read(coins)

    assert first == coins
    assert read(coins) is first
    assert read(coins.model_copy(update={"processes": "shared"})).processes == "shared"
