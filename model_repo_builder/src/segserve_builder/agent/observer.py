"""Snapshots of one server, its repository and its processes, with a cache of what is costly to query."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from segserve_builder.agent.processes import ProcessWatch
from segserve_builder.agent.server import Repository, TritonError, TritonServer, TritonUnreachableError
from segserve_builder.agent.state import READY, AgentState, Ensemble, RepairStep, ServerSnapshot
from segserve_builder.steps.crash_record import opened_members

UNANSWERED_GRACE_S: Final = 10.0
"""How long the last snapshot stands for a server that does not respond in time."""


class ServerObserver:
    """Takes the agent's snapshots. Not safe for use from several threads."""

    def __init__(self, server: TritonServer, repository: Repository, processes: ProcessWatch | None) -> None:
        self._server = server
        self._repository = repository
        self._processes = processes
        self._loaded: dict[str, Ensemble] = {}
        self._suspects: set[str] = set()
        self._last = ServerSnapshot(ready=False)
        self._answered_s = time.monotonic() - UNANSWERED_GRACE_S

    @property
    def last(self) -> ServerSnapshot:
        """The last snapshot; any thread may ask."""
        return self._last

    def take(self, state: AgentState) -> ServerSnapshot:
        """Return a snapshot taken now."""
        self._last = self._snapshot(state)
        return self._last

    def learn(self, ensembles: Mapping[str, Ensemble]) -> None:
        """Cache ensembles that the server has just reported."""
        self._loaded.update(ensembles)

    def suspect(self, steps: frozenset[str]) -> None:
        """Count steps as dead until they are cleared, because they did not respond to a probe."""
        self._suspects |= steps

    def clear(self, step: str) -> None:
        """Stop suspecting a step that has been reloaded."""
        self._suspects.discard(step)

    def end_idle(self, loading: Mapping[str, float]) -> frozenset[str]:
        """End processes of the steps `loading` that have been idle for long: see `ProcessWatch`."""
        return self._processes.end_idle(loading) if loading and self._processes is not None else frozenset()

    def end_server(self) -> None:
        """End the server, which whatever started it starts again."""
        if self._processes is not None:
            self._processes.end_server()

    def _snapshot(self, state: AgentState) -> ServerSnapshot:
        files = ServerSnapshot(ready=False, published=self._repository.ensembles(), folders=self._repository.folders())
        try:
            states = self._server.states()
        except TritonError as error:
            ended = self._processes is not None and self._processes.server_runs() is False
            lost = ended or isinstance(error, TritonUnreachableError)
            if not lost and time.monotonic() - self._answered_s < UNANSWERED_GRACE_S:
                return self._last  # a busy machine does not mean that the server is dead
            self._loaded.clear()
            self._suspects.clear()
            return files
        self._answered_s = time.monotonic()
        self._loaded = {name: ensemble for name, ensemble in self._loaded.items() if states.get(name) == READY}
        for name in files.published.keys() - self._loaded.keys():
            if states.get(name) == READY:
                self._query(name)
        under_repair = {action.name for action in state.running if isinstance(action, RepairStep)}
        short: frozenset[str] = frozenset()
        if self._processes is not None:
            needed = {step: count for one in state.prepared.values() for step, count in one.processes.items()}
            short = self._processes.short_of({s: count for s, count in needed.items() if states.get(s) == READY})
        dead = short | under_repair | self._suspects
        deaths = {} if self._processes is None else dict(self._processes.deaths)
        opened = opened_members(self._repository.root)
        loaded = dict(self._loaded)
        return replace(files, ready=True, states=states, loaded=loaded, dead=dead, deaths=deaths, opened=opened)

    def _query(self, name: str) -> None:
        try:
            self._loaded[name] = self._server.ensemble(name)
        except TritonError:
            return  # it was unloaded in between: the next snapshot shows it
