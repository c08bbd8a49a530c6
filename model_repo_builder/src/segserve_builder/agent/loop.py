"""The agent's loop: look, decide, act, report; what happened in between never matters."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias

from pydantic import ValidationError

from segserve_builder.agent import decide
from segserve_builder.agent.memory import CRASHES_ALLOWED, AgentState
from segserve_builder.agent.protocol import Assignment, ModelState, Report
from segserve_builder.agent.state import AssignedRevision, LoadStep, Prepare, Probe, Prove, RepairStep, Serve
from segserve_builder.render.publish import sweep
from segserve_builder.sources.eviction import Leases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from segserve_builder.agent.lookout import ServerObserver
    from segserve_builder.agent.protocol import ModelReport
    from segserve_builder.agent.state import Action, Prepared, ServerSnapshot
    from segserve_builder.agent.work import ActionFailure, ActionResult, ActionRunner

TICK_S: Final = 0.5
HEARTBEAT_S: Final = 1.0
PROBE_INTERVAL_S: Final = 5.0
PROBE_SHARE: Final = 0.02
WORKERS: Final = 8
TAKEOVER_S: Final = 3.0
_LOG = logging.getLogger(__name__)


OnReport: TypeAlias = "Callable[[bool, tuple[ModelReport, ...]], None]"
"""Told whether the server is ready, and of its models, whenever that changed."""


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """How an agent is: when its last pass was (monotonic), whether it was told what to hold, and its last probe."""

    passed_s: float
    has_assignment: bool = False
    server_ready: bool = False
    models: tuple[ModelReport, ...] = ()
    probe_s: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the server has proved, or refused, all that was assigned."""
        done = (ModelState.READY, ModelState.FAILED, ModelState.UNLOADING)
        return self.has_assignment and self.server_ready and all(model.state in done for model in self.models)


class Agent:
    """Keeps one Triton equal to `assignment.json` in `folder`, and writes `report.json` there.

    `tell` hears whatever is written there, without its heartbeats.
    """

    def __init__(
        self, folder: Path, work: ActionRunner, lookout: ServerObserver, tell: OnReport = lambda *_: None
    ) -> None:
        self._work = work
        self._lookout = lookout
        self._assignment = AssignmentFile(folder / "assignment.json")
        self._report = ReportFile(folder / "report.json", tell)
        self.pulse = AgentHealth(time.monotonic())
        self._memory = AgentState()
        self._assigned: tuple[AssignedRevision, ...] = ()
        self._next_probe_s = 0.0
        self._last_probed: list[str] = []
        self._outcomes: SimpleQueue[ActionResult] = SimpleQueue()
        self._sayings: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._wake = threading.Event()
        self._leases = Leases()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="action")

    def run(self, stop: threading.Event) -> None:
        """Go round until `stop` is set; `wake` makes it notice at once."""
        sweep(self._work.repository.root)
        while not stop.is_set():
            self._pass()
            self._wake.wait(TICK_S)
            self._wake.clear()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._leases.close()

    def wake(self) -> None:
        """Make the next pass begin at once."""
        self._wake.set()

    def _pass(self) -> None:
        now_s = time.monotonic()
        while not self._sayings.empty():
            revision, text = self._sayings.get()
            self._memory.progress[revision] = text
        while not self._outcomes.empty():
            self._absorb(self._outcomes.get(), now_s)
        told = self._assignment.read()
        self._assigned = told or ()
        self._memory.keep_only(self._assigned)
        self._leases.keep(path for model in self._assigned for path in self._work.objects(model.spec))
        look = self._lookout.take(self._memory)
        self._memory.doubt(self._assigned, look)
        if told is None:
            self._tell(look.ready, ())
            return
        for action in decide.next_actions(told, look, self._memory, now_s):
            self._start(action, now_s)
        if now_s >= self._next_probe_s:
            self._start_probe(look, now_s)
        self._tell(look.ready, decide.reports(told, look, self._memory), has_assignment=True)

    def _tell(self, ready: bool, models: tuple[ModelReport, ...], *, has_assignment: bool = False) -> None:
        self._report.write(ready, models)
        self.pulse = AgentHealth(time.monotonic(), has_assignment, ready, models, self.pulse.probe_s)

    def _start(self, action: Action, now_s: float) -> None:
        revision = action.revision if isinstance(action, Prepare | Serve | Prove | Probe) else ""
        told = next((model for model in self._assigned if model.revision == revision), None)
        self._memory.start(action, now_s)
        self._workers.submit(self._carry_out, action, told, self._memory.prepared.get(revision))

    def _carry_out(self, action: Action, told: AssignedRevision | None, prepared: Prepared | None) -> None:
        revision = told.revision if told is not None else ""
        say = partial(self._say, revision)
        self._outcomes.put(self._work.carry_out(action, told, prepared, say))
        self._wake.set()

    def _say(self, revision: str, text: str) -> None:
        _LOG.info("%s: %s", revision, text)
        self._sayings.put((revision, text))

    def _start_probe(self, look: ServerSnapshot, now_s: float) -> None:
        busy = {action.subject for action in self._memory.running}
        proved = [told for told in self._assigned if told.revision in self._memory.proofs]
        free = {told.model: told for told in proved if told.model not in busy}
        if not free or not look.ready:
            return
        waiting = [model for model in free if model not in self._last_probed]
        model = waiting[0] if waiting else next(model for model in self._last_probed if model in free)
        self._last_probed = [*(other for other in self._last_probed if other != model), model]
        self._next_probe_s = now_s + PROBE_INTERVAL_S
        self._start(Probe(free[model].revision, model), now_s)

    def _absorb(self, outcome: ActionResult, now_s: float) -> None:
        memory, action = self._memory, outcome.action
        memory.running.discard(action)
        self._lookout.learn(outcome.ensembles)
        if outcome.problem is not None:
            self._absorb_problem(action, outcome.problem, now_s)
            return
        if isinstance(action, Prepare) and outcome.prepared is not None:
            memory.prepare(outcome.prepared)
        elif isinstance(action, Prove) and outcome.proof is not None:
            memory.prove(action.revision, outcome.proof)
            self._next_probe_s = now_s + PROBE_INTERVAL_S
        elif isinstance(action, Serve):
            memory.serve(action.revision, now_s)
        elif isinstance(action, RepairStep):
            self._lookout.clear(action.name)
        elif isinstance(action, Probe):
            self.pulse = replace(self.pulse, probe_s=outcome.duration_s)
            # Slow networks are asked less often, so that asking never takes more than a small share of the time.
            self._next_probe_s = now_s + max(PROBE_INTERVAL_S, outcome.duration_s / PROBE_SHARE)
            if not self._died_meanwhile(action.revision):
                self._lookout.suspect(outcome.suspects)

    def _absorb_problem(self, action: Action, problem: ActionFailure, now_s: float) -> None:
        memory = self._memory
        if isinstance(action, Prove) and self._died_meanwhile(action.revision):
            memory.crashes[action.revision] += 1
            if memory.crashes[action.revision] < CRASHES_ALLOWED:
                return
        for told in self._concerned(action):
            memory.fail(told, problem.reason, problem.message, retry_from_s=now_s if problem.retryable else None)

    def _concerned(self, action: Action) -> Sequence[AssignedRevision]:
        if isinstance(action, LoadStep | RepairStep):
            return self._memory.users(action.name)
        if isinstance(action, Prepare | Serve | Prove):
            return [told for told in self._assigned if told.revision == action.revision]
        return ()

    def _died_meanwhile(self, revision: str) -> bool:
        prepared = self._memory.prepared.get(revision)
        return prepared is not None and not self._lookout.take(self._memory).dead.isdisjoint(prepared.steps)


class AssignmentFile:
    """What the group was told, read anew only where the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._told: tuple[AssignedRevision, ...] | None = None

    def read(self) -> tuple[AssignedRevision, ...] | None:
        """Return the assigned models; None as long as nothing was assigned at all."""
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            if stamp != self._stamp:
                self._stamp = stamp
                models = Assignment.model_validate_json(self._path.read_bytes()).models
                self._told = tuple(map(AssignedRevision.of, models))
        except FileNotFoundError:
            return self._told
        except ValidationError as error:
            _LOG.error("%s cannot be read; what was assigned before stays: %s", self._path, error)
        return self._told


class ReportFile:
    """The report, replaced whole: at once where something changed, else for its heartbeat.

    What an earlier agent said last stays for a moment, until this one has seen for itself what it says of its models:
    a server that goes on serving is not taken out because its agent starts anew.
    """

    def __init__(self, path: Path, tell: OnReport = lambda *_: None) -> None:
        self._path = path
        self._tell = tell
        self._inherited_until_s = time.monotonic() + TAKEOVER_S if path.exists() else 0.0
        self._content: tuple[bool, tuple[ModelReport, ...]] | None = None
        self._written_s = 0.0

    def write(self, server_ready: bool, models: tuple[ModelReport, ...]) -> None:
        """Write the report where it is due."""
        content, now_s = (server_ready, models), time.monotonic()
        settled = all(model.state in (ModelState.READY, ModelState.FAILED) for model in models)
        if server_ready and not settled and now_s < self._inherited_until_s:
            return
        self._inherited_until_s = 0.0
        if content == self._content and now_s - self._written_s < HEARTBEAT_S:
            return
        report = Report(heartbeat=time.time(), server_ready=server_ready, models=models)
        staging = self._path.with_name(f".{self._path.name}.new")
        staging.write_text(report.model_dump_json(by_alias=True))
        staging.replace(self._path)
        if content != self._content:
            self._tell(server_ready, models)
        self._content, self._written_s = content, now_s
