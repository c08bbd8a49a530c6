"""Looks at one server, its repository and its processes, and remembers between looks what is costly to ask."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from segserve_builder.agent.server import TritonError, TritonUnreachableError
from segserve_builder.agent.state import READY, RepairStep, ServerSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.agent.memory import AgentState
    from segserve_builder.agent.processes import StepProcesses
    from segserve_builder.agent.repository import Repository
    from segserve_builder.agent.server import TritonServer
    from segserve_builder.agent.state import Ensemble

UNANSWERED_GRACE_S: Final = 10.0


class ServerObserver:
    """The eyes of an agent. Not for use from several threads."""

    def __init__(self, server: TritonServer, repository: Repository, processes: StepProcesses | None) -> None:
        self._server = server
        self._repository = repository
        self._processes = processes
        self._loaded: dict[str, Ensemble] = {}
        self._suspects: set[str] = set()
        self._last = ServerSnapshot(ready=False)
        self._answered_s = time.monotonic() - UNANSWERED_GRACE_S

    def take(self, memory: AgentState) -> ServerSnapshot:
        """Look at everything now."""
        self._last = self._look(memory)
        return self._last

    def learn(self, ensembles: Mapping[str, Ensemble]) -> None:
        """Take over what the server has just said of its ensembles."""
        self._loaded.update(ensembles)

    def suspect(self, steps: frozenset[str]) -> None:
        """Take steps for dead that do not answer, until they are cleared."""
        self._suspects |= steps

    def clear(self, step: str) -> None:
        """Suspect a step no more: it has been reloaded."""
        self._suspects.discard(step)

    def _look(self, memory: AgentState) -> ServerSnapshot:
        files = ServerSnapshot(ready=False, published=self._repository.ensembles(), folders=self._repository.folders())
        try:
            states = self._server.states()
        except TritonError as error:
            return self._without_answer(files, error)
        self._answered_s = time.monotonic()
        self._loaded = {name: known for name, known in self._loaded.items() if states.get(name) == READY}
        for name in files.published.keys() - self._loaded.keys():
            if states.get(name) == READY:
                self._ask(name)
        dead = self._dead(states, memory)
        return replace(files, ready=True, states=states, loaded=dict(self._loaded), dead=dead)

    def _without_answer(self, files: ServerSnapshot, error: TritonError) -> ServerSnapshot:
        ended = self._processes is not None and self._processes.server_runs() is False
        lost = ended or isinstance(error, TritonUnreachableError)
        if not lost and time.monotonic() - self._answered_s < UNANSWERED_GRACE_S:
            return self._last  # a busy machine is no reason to take a server for dead
        self._loaded.clear()
        self._suspects.clear()
        return files

    def _ask(self, name: str) -> None:
        try:
            self._loaded[name] = self._server.ensemble(name)
        except TritonError:
            return  # it went meanwhile: the next look says so

    def _dead(self, states: Mapping[str, str], memory: AgentState) -> frozenset[str]:
        under_repair = {action.name for action in memory.running if isinstance(action, RepairStep)}
        short: frozenset[str] = frozenset()
        if self._processes is not None:
            needed = {step: count for known in memory.prepared.values() for step, count in known.processes.items()}
            short = self._processes.short_of({s: count for s, count in needed.items() if states.get(s) == READY})
        return short | under_repair | self._suspects
