"""The agent's loop: observe the server, decide, start actions, report. Every pass starts from what is there now."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeAlias

from segserve_builder.agent import decide
from segserve_builder.agent.answer_counts import AnswerCounts
from segserve_builder.agent.cost import Owner, ServedRevision
from segserve_builder.agent.protocol import (
    HEARTBEAT_FILE,
    REPORT_FILE,
    Assignment,
    ModelReport,
    ModelState,
    Report,
)
from segserve_builder.agent.runner import LOAD_FAILED, LOST_GPU, ActionFailure, ActionResult, ActionRunner
from segserve_builder.agent.server import ServerObserver
from segserve_builder.agent.state import (
    CRASHES_ALLOWED,
    RELOADS_ALLOWED,
    UNLOADS_ALLOWED,
    Action,
    AgentState,
    AssignedRevision,
    LoadStep,
    Prepare,
    Prepared,
    Probe,
    Prove,
    RepairStep,
    Score,
    Serve,
    ServerSnapshot,
    Try,
    Unload,
    is_loaded,
)
from segserve_builder.errors import FilesChangedError
from segserve_builder.render.repository import sweep
from segserve_builder.sources.cache import FileLocks
from segserve_builder.steps.crash_record import crashed_members
from segserve_common.files import DamagedFileError, UnreadableFileError, read_file, replace_file

TICK_S: Final = 0.5
HEARTBEAT_S: Final = 1.0
PROBE_INTERVAL_S: Final = 5.0
PROBE_SHARE: Final = 0.02
WORKERS: Final = 8
TAKEOVER_S: Final = 3.0
"""How long the last report of an earlier agent stands while a model has to be loaded."""
PROVING_S: Final = 20.0
"""How long it stands if all models are loaded: on a busy machine it takes long to prove them again."""
LONG_LOAD_S: Final = 10.0
"""The processes of a step that takes longer to load are looked at."""
LOOK_INTERVAL_S: Final = 2.0
RENEWED_S: Final = 60.0
"""A member that fails a probe is opened anew before that: if it fails then, its shared step's process is replaced."""
_DIED: Final = ActionFailure("StepDied", "a process of the model died while it answered golden images", retryable=True)
_LOST_SERVER: Final = ActionFailure("ServerNotReady", "Triton stopped responding during the check", retryable=True)
_LOG = logging.getLogger(__name__)


OnReport: TypeAlias = Callable[[bool, tuple[ModelReport, ...]], None]
"""Called with whether the server is ready and with its models' reports, whenever either changes."""


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """The agent's own health: time of its last pass (monotonic), its last report, duration of its last probe."""

    passed_s: float
    has_assignment: bool = False
    server_ready: bool = False
    models: tuple[ModelReport, ...] = ()
    probe_s: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the server has proved or refused every assigned model."""
        done = (ModelState.READY, ModelState.FAILED, ModelState.UNLOADING)
        return self.has_assignment and self.server_ready and all(model.state in done for model in self.models)


class Agent:
    """Keeps one Triton equal to `assignment.json` in `folder`, and writes `report.json` and `heartbeat` there.

    `on_report` is called with every change of that report, but not for its heartbeats. At `metrics_port` on loopback,
    the server serves its steps' counts of answers.
    """

    def __init__(
        self,
        folder: Path,
        runner: ActionRunner,
        observer: ServerObserver,
        on_report: OnReport = lambda *_: None,
        metrics_port: int | None = None,
    ) -> None:
        self._runner = runner
        self._observer = observer
        self._assignment_file = AssignmentFile(folder / "assignment.json")
        self._report_file = ReportFile(folder, on_report)
        self.health = AgentHealth(time.monotonic())
        self._state = AgentState(answers=AnswerCounts(metrics_port))
        self._assignment: tuple[AssignedRevision, ...] = ()
        self._next_probe_s = 0.0
        self._next_look_s = 0.0
        self._last_probed: list[str] = []
        self._results: SimpleQueue[ActionResult] = SimpleQueue()
        self._progress: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._wake = threading.Event()
        self._file_locks = FileLocks()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="action")

    def run(self, stop: threading.Event) -> None:
        """Run passes until `stop` is set; call `wake` after setting it."""
        sweep(self._runner.repository.root)
        while not stop.is_set():
            self._pass()
            is_woken = self._wake.wait(TICK_S)
            if not is_woken and self._is_at_rest:
                self._wake.wait(TICK_S)
            self._wake.clear()
        self._runner.stopping.set()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._file_locks.close()

    def wake(self) -> None:
        """Start the next pass at once."""
        self._wake.set()

    def served(self) -> list[ServedRevision]:
        """Return the revisions that the server has, for another thread."""
        snapshot = self._observer.last
        return [
            ServedRevision(
                Owner(each.assigned.model, each.assigned.revision),
                each.steps,
                each.tree.native,
                counter=each.assigned.model if each.tree.members else each.steps[-1],
            )
            for each in self._state.published()
            # The public name counts requests of the former revision until it stands for this one.
            if not each.tree.members or snapshot.serves(each.assigned.model, each.assigned.revision)
        ]

    @property
    def _is_at_rest(self) -> bool:
        """Whether nothing is under way, and neither the assignment nor a process gives reason for a pass."""
        quiet = self.health.is_settled and not self._state.running
        return quiet and not self._assignment_file.has_changed and not self._observer.has_lost_processes(self._state)

    def _pass(self) -> None:
        now_s = time.monotonic()
        while not self._progress.empty():
            revision, text = self._progress.get()
            self._state.revisions[revision].progress = text
        while not self._results.empty():
            self._absorb(self._results.get(), now_s)
        assignment = self._assignment_file.read()
        self._assignment = assignment or ()
        self._state.keep_only(self._assignment)
        # Agents may share a cache: locked objects are not evicted by another one.
        specs = [spec for model in self._assignment for spec in model.specs]
        files = (path for spec in specs for path in self._runner.objects(spec))
        self._file_locks.keep([*files, *self._runner.engines.archives.copy().values()])
        snapshot = self._observer.take(self._state)
        self._state.invalidate_proofs(self._assignment, snapshot)
        self._state.follow_openings(snapshot, now_s)
        if assignment is None:
            self._report(snapshot.ready, ())
            return
        actions = decide.next_actions(assignment, snapshot, self._state, now_s)
        self._state.repeats.follow(actions, now_s)
        for action in actions:
            if self._state.repeats.is_due(action, now_s):
                self._start(action, now_s)
        if now_s >= self._next_probe_s:
            self._start_probe(snapshot, now_s)
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_INTERVAL_S
            # While a step is repaired, its other processes answer callers.
            loading = {
                action.name: now_s - since_s if isinstance(action, RepairStep) else math.inf
                for action, since_s in self._state.running.items()
                if isinstance(action, LoadStep | RepairStep) and now_s - since_s >= LONG_LOAD_S
            }
            for step in self._observer.end_idle(loading):
                _LOG.warning("%s: Triton does not go on with loading it; its process was ended, to load it again", step)
        if snapshot.ready and self._state.answers.start(now_s):
            self._workers.submit(self._state.answers.read)
        self._report(snapshot.ready, decide.reports(assignment, snapshot, self._state), has_assignment=True)

    def _report(self, ready: bool, models: tuple[ModelReport, ...], *, has_assignment: bool = False) -> None:
        self._report_file.write(ready, models)
        self.health = AgentHealth(time.monotonic(), has_assignment, ready, models, self.health.probe_s)

    def _start(self, action: Action, now_s: float) -> None:
        revision = action.revision if isinstance(action, Prepare | Serve | Prove | Try | Score | Probe) else ""
        assigned = next((model for model in self._assignment if model.revision == revision), None)
        self._state.start(action, now_s)
        prepared = self._state.revisions[revision].prepared if assigned is not None else None
        self._workers.submit(self._carry_out, action, assigned, prepared)

    def _carry_out(self, action: Action, assigned: AssignedRevision | None, prepared: Prepared | None) -> None:
        on_progress = partial(self._on_progress, assigned.revision if assigned is not None else "")
        is_ordered = partial(self._orders, action) if isinstance(action, Score) else lambda: True
        self._results.put(self._runner.carry_out(action, assigned, prepared, on_progress, is_ordered))
        self._wake.set()

    def _orders(self, action: Score) -> bool:
        """Return whether the present assignment requires an action; any thread may call this."""
        return any(each.revision == action.revision and each.orders(action) for each in self._assignment)

    def _on_progress(self, revision: str, text: str) -> None:
        _LOG.info("%s: %s", revision, text)
        self._progress.put((revision, text))

    def _start_probe(self, snapshot: ServerSnapshot, now_s: float) -> None:
        busy = {action.subject for action in self._state.running}
        states = self._state.revisions
        proved = [assigned for assigned in self._assignment if states[assigned.revision].proof is not None]
        free = {assigned.model: assigned for assigned in proved if assigned.model not in busy}
        if not free or not snapshot.ready:
            return
        waiting = [model for model in free if model not in self._last_probed]
        model = waiting[0] if waiting else next(model for model in self._last_probed if model in free)
        self._last_probed = [*(other for other in self._last_probed if other != model), model]
        self._next_probe_s = now_s + PROBE_INTERVAL_S
        self._start(Probe(free[model].revision, model), now_s)

    def _absorb(self, result: ActionResult, now_s: float) -> None:
        state, action = self._state, result.action
        state.running.pop(action, None)
        state.repeats.record(action, now_s)
        self._end_stuck_server(action)
        if result.server_lost_gpu:
            _LOG.error("Triton lost its GPU; restarting it")
            self._observer.end_server()
        self._observer.learn(result.ensembles)
        if isinstance(action, Try):
            self._absorb_trial(action, result, now_s)
            return
        if isinstance(action, Score):
            self._absorb_scores(action, result, now_s)
            return
        if result.failure is not None:
            self._observer.suspect(result.suspects)
            self._absorb_failure(action, result.failure, now_s)
            return
        if isinstance(action, Prepare) and result.prepared is not None:
            state.prepare(result.prepared)
        elif isinstance(action, Prove) and result.proof is not None:
            state.prove(action.revision, result.proof)
            self._next_probe_s = now_s + PROBE_INTERVAL_S
        elif isinstance(action, Serve):
            state.serve(action.revision, now_s)
        elif isinstance(action, RepairStep):
            self._observer.clear(action.name)
            crashed = crashed_members(self._runner.repository.root)
            for prepared in state.published():
                if action.name in prepared.steps and not crashed.isdisjoint(prepared.tree.members):
                    state.revisions[prepared.assigned.revision].prepared = None
        elif isinstance(action, Probe):
            self._absorb_probe(action, result, now_s)

    def _end_stuck_server(self, action: Action) -> None:
        """End a server that accepts to unload a model and does not, again and again, unless others are assigned."""
        in_vain = self._state.repeats.count(action) > UNLOADS_ALLOWED + RELOADS_ALLOWED
        if isinstance(action, Unload) and in_vain and not self._assignment:
            _LOG.error("Triton accepts to unload %s and keeps it loaded; restarting it", action.name)
            self._observer.end_server()

    def _absorb_probe(self, action: Probe, result: ActionResult, now_s: float) -> None:
        self.health = replace(self.health, probe_s=result.duration_s)
        # Slow networks are probed less often, so that probes take at most a small share of the server's time.
        self._next_probe_s = now_s + max(PROBE_INTERVAL_S, result.duration_s / PROBE_SHARE)
        if not self._has_dead_steps(action.revision):
            self._observer.suspect(result.suspects | self._failing_on(action.revision, result.failing, now_s))

    def _failing_on(self, revision: str, failing: frozenset[str], now_s: float) -> frozenset[str]:
        """Return the steps of a failed probe once another one failed so long before that its member was opened anew."""
        state = self._state.revisions[revision]
        since_s = min(state.failing_since_s, now_s) if failing else math.inf
        is_late = now_s - since_s > RENEWED_S
        state.failing_since_s = math.inf if is_late else since_s
        return failing if is_late else frozenset()

    def _absorb_failure(self, action: Action, failure: ActionFailure, now_s: float) -> None:
        state = self._state
        # A proof that failed because a step died says nothing about the model, unless it dies again and again.
        if isinstance(action, Prove) and self._has_dead_steps(action.revision):
            state.revisions[action.revision].crashes += 1
            if state.revisions[action.revision].crashes < CRASHES_ALLOWED:
                return
            failure = replace(failure, retryable=False)
        concerned: Sequence[AssignedRevision] = ()
        if isinstance(action, LoadStep | RepairStep):
            concerned = state.users(action.name)
        elif isinstance(action, Prepare | Serve | Prove):
            concerned = [assigned for assigned in self._assignment if assigned.revision == action.revision]
        snapshot = self._observer.take(state)
        for assigned in concerned:
            # What cannot be changed, such as its metrics, goes on as it was.
            serves = isinstance(action, Prepare | LoadStep | Serve) and is_loaded(assigned, snapshot, state)
            if failure.reason == FilesChangedError.reason and isinstance(action, LoadStep | RepairStep):
                state.revisions[assigned.revision].prepared = None  # it is published anew
            if failure.reason == LOAD_FAILED:
                state.fail_load(assigned, failure.reason, failure.message, now_s, serves=serves)
                continue
            # A proof with the former steps says nothing about the shared ones, which have not opened all members yet.
            prepared = state.revisions[assigned.revision].prepared if isinstance(action, Prove) else None
            by_former = (
                prepared is not None
                and bool(prepared.tree.members)
                and not snapshot.serves(assigned.model, assigned.revision, prepared.folders)
            )
            retry_from_s = now_s if failure.retryable or by_former else None
            state.fail(assigned, failure.reason, failure.message, retry_from_s=retry_from_s, serves=serves)

    def _absorb_trial(self, action: Try, result: ActionResult, now_s: float) -> None:
        trial = next((each.trial for each in self._assignment if each.revision == action.revision), None)
        if trial is None or trial.spec.golden != action.golden:
            return
        if result.prepared is not None and result.proof is not None:
            self._state.pass_trial(result.prepared, result.proof)
            return
        failure = result.failure or _LOST_SERVER
        died = result.failure is None or failure.reason == LOST_GPU or self._has_dead_steps(action.revision)
        retry_from_s = now_s if failure.retryable or died else None
        self._state.fail_trial(trial, failure.reason, failure.message, retry_from_s=retry_from_s, died=died)

    def _absorb_scores(self, action: Score, result: ActionResult, now_s: float) -> None:
        if not self._orders(action):
            return
        died = self._died_since(action.revision, time.time() - result.duration_s)
        if result.scores is not None and not (died and result.scores.lacks_answers):
            self._state.replays.keep(action.revision, result.scores, now_s, result.duration_s)
            return
        failure = result.failure or (_DIED if result.scores is not None else _LOST_SERVER)
        died = died or result.failure is None or failure.reason == LOST_GPU
        self._state.replays.fail(
            action.revision, failure.reason, failure.message, now_s, retryable=failure.retryable, died=died
        )

    def _died_since(self, revision: str, since_s: float) -> bool:
        """Return whether a process of a revision's steps is dead, or died since then (Unix time) and was replaced."""
        prepared = self._state.revisions[revision].prepared
        if prepared is None:
            return False
        snapshot = self._observer.take(self._state)
        deaths = (snapshot.deaths[step] for step in prepared.steps if step in snapshot.deaths)
        return not snapshot.dead.isdisjoint(prepared.steps) or any(death.at_s >= since_s for death in deaths)

    def _has_dead_steps(self, revision: str) -> bool:
        prepared = self._state.revisions[revision].prepared
        return prepared is not None and not self._observer.take(self._state).dead.isdisjoint(prepared.steps)


class AssignmentFile:
    """The group's assignment, parsed again only if the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._assignment: tuple[AssignedRevision, ...] | None = None

    @property
    def has_changed(self) -> bool:
        """Whether the file was replaced since it was last read."""
        try:
            return _stamp(self._path) != self._stamp
        except FileNotFoundError:
            return False

    def read(self) -> tuple[AssignedRevision, ...] | None:
        """Return the assigned models, None before the first assignment; a file that is not valid changes nothing."""
        try:
            if (stamp := _stamp(self._path)) != self._stamp:
                self._stamp = stamp
                models = read_file(self._path, lambda text: Assignment.model_validate(json.loads(text))).models
                # The spec of a model that is assigned as before stays the same object, which is compared at once.
                former = {each.revision: each.spec for each in self._assignment or ()}
                self._assignment = tuple(
                    replace(each, spec=former[each.revision]) if former.get(each.revision) == each.spec else each
                    for each in map(AssignedRevision.of, models)
                )
        except FileNotFoundError:
            return self._assignment
        except DamagedFileError as error:
            if isinstance(error, UnreadableFileError):
                self._stamp = None
            _LOG.error("%s; the previous assignment stays", error)
        return self._assignment


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


class ReportFile:
    """The report file in `folder`, replaced as a whole after a change; a heartbeat renews the time of another file.

    The last report of an earlier agent stays for `TAKEOVER_S`, for `PROVING_S` unless a model has to be loaded, or
    until this agent has the state of its models: a server that still serves must not lose its traffic because its
    agent restarts.
    """

    def __init__(self, folder: Path, on_report: OnReport = lambda *_: None) -> None:
        self._path, self._heartbeat = folder / REPORT_FILE, folder / HEARTBEAT_FILE
        self._on_report = on_report
        self._began_s = time.monotonic() if self._path.exists() else -math.inf
        self._content: tuple[bool, tuple[ModelReport, ...]] | None = None
        self._text = ""
        self._renewed_s = 0.0

    def write(self, server_ready: bool, models: tuple[ModelReport, ...]) -> None:
        """Write the report if it changed or its heartbeat is due."""
        content, now_s = (server_ready, models), time.monotonic()
        settled = all(model.state in (ModelState.READY, ModelState.FAILED) for model in models)
        loading = any(model.state is ModelState.LOADING for model in models)
        inherited_s = TAKEOVER_S if loading else PROVING_S
        if server_ready and not settled and now_s < self._began_s + inherited_s:
            return
        self._began_s = -math.inf
        changed = content != self._content
        if not changed and now_s - self._renewed_s < HEARTBEAT_S:
            return
        if changed:
            report = Report(server_ready=server_ready, models=models)
            self._text = report.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
        if not self._is_written():
            replace_file(self._path, self._text)
        self._heartbeat.touch()
        os.utime(self._heartbeat, (time.time(),) * 2)  # by this machine's clock, which the file system's may not be
        if changed:
            self._on_report(server_ready, models)
        self._content, self._renewed_s = content, now_s

    def _is_written(self) -> bool:
        # What was damaged, or removed with a server that ended, is written again.
        try:
            return read_file(self._path, str) == self._text
        except (OSError, ValueError):
            return False
