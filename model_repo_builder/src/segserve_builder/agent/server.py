"""One Triton: its client over gRPC on loopback, and its files, which are the model repository and the log.

Every call has a deadline and raises `TritonError`s. Snapshots of the server, its repository and its processes come
with a cache of what is costly to query.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from uuid import uuid4

from segserve_builder.agent import secret
from segserve_builder.agent.processes import ProcessWatch
from segserve_builder.agent.state import READY, AgentState, Ensemble, RepairStep, ServerSnapshot
from segserve_builder.render.config import CONDITIONAL, VERSION
from segserve_builder.render.tree import CONFIG_FILE
from segserve_builder.spec.members import member_of
from segserve_builder.spec.names import AGENT_REQUEST_ID, STEP_PREFIX
from segserve_builder.steps.crash_record import opened_members

if TYPE_CHECKING:
    from numpy.typing import NDArray

RawAnswer: TypeAlias = "dict[str, NDArray[Any]]"
"""All outputs of one request, by name."""

QUERY_TIMEOUT_S: Final = 2.0
LOAD_TIMEOUT_S: Final = 900.0
UNLOAD_TIMEOUT_S: Final = 30.0
_CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted server must be noticed at once; gRPC would back off for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # So long a connection may take: on a busy machine both ends wait for a core.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.enable_http_proxy", 0),
]

TAIL_BYTES: Final = 256 * 1024
_ERROR: Final = re.compile(r"^E\d{4} \S+ +\d+ \S+\] (?P<text>.*)$")
UNANSWERED_GRACE_S: Final = 10.0
"""How long the last snapshot stands for a server that does not respond in time."""


class StepCounts(NamedTuple):
    """Requests that a model of Triton has answered since it was loaded, and the time in which it computed them."""

    requests: float
    computed_s: float

    def since(self, before: StepCounts | None) -> StepCounts:
        """Return what was added since; a model that was loaded again began anew."""
        if before is None or self.requests < before.requests:
            return self
        return StepCounts(self.requests - before.requests, max(self.computed_s - before.computed_s, 0.0))


class TritonError(Exception):
    """A call to Triton failed."""


class TritonUnreachableError(TritonError):
    """No server responds at Triton's port."""


class TritonTimeoutError(TritonError):
    """Triton did not answer before the deadline."""


class TritonRefusedError(TritonError):
    """Triton answered with an error; `status` is the name of its gRPC status, such as INVALID_ARGUMENT."""

    def __init__(self, status: str, message: str) -> None:
        self.status = status
        super().__init__(message)


class TritonServer:
    """One Triton. Safe to use from many threads."""

    def __init__(self, grpc_port: int, secret_file: Path | None = None) -> None:
        """Create a client that connects on its first call; restricted APIs require the secret in `secret_file`."""
        from tritonclient.grpc import InferenceServerClient

        self._secret_file = secret_file
        self._client = InferenceServerClient(f"127.0.0.1:{grpc_port}", channel_args=_CHANNEL)

    @property
    def _headers(self) -> dict[str, str]:
        # Read for each call: a server that is started again may have another secret.
        file = self._secret_file
        return secret.grpc_headers(file.read_text()) if file is not None and file.exists() else {}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def states(self) -> dict[str, str]:
        """Return the state of every model in the repository index, '' for one that was never loaded."""
        with self._typed_errors():
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=QUERY_TIMEOUT_S)
        own = [model for model in index.models if model.version in ("", str(VERSION))]
        return {model.name: model.state for model in own}

    def ensemble(self, name: str) -> Ensemble:
        """Return a ready ensemble as the server reports it."""
        return ensemble_of(self._config(name))

    def devices(self, name: str) -> frozenset[str]:
        """Return the devices that a loaded model has instances on: `cpu`, `gpu`."""
        # A loaded model's KIND_AUTO has become one of the two.
        kinds = {group.Kind.Name(group.kind) for group in self._config(name).instance_group}
        return frozenset(kind.removeprefix("KIND_").lower() for kind in kinds)

    def _config(self, name: str) -> Any:
        with self._typed_errors():
            return self._client.get_model_config(name, headers=self._headers, client_timeout=QUERY_TIMEOUT_S).config

    def load(self, name: str) -> None:
        """Load a model from its current files; returns once it is ready."""
        with self._typed_errors():
            self._client.load_model(name, headers=self._headers, client_timeout=LOAD_TIMEOUT_S)

    def unload(self, name: str, *, load_first: bool = False) -> None:
        """Start to unload a model, which may have to be loaded first; the server finishes running requests."""
        if load_first:
            with suppress(TritonRefusedError):
                self.load(name)
        with self._typed_errors():
            self._client.unload_model(name, headers=self._headers, client_timeout=UNLOAD_TIMEOUT_S)

    def answered(self, name: str) -> int:
        """Return the number of requests that a model has answered since it was loaded."""
        with self._typed_errors():
            statistics = self._client.get_inference_statistics(
                name, headers=self._headers, client_timeout=QUERY_TIMEOUT_S
            )
        return sum(int(model.inference_stats.success.count) for model in statistics.model_stats)

    def counts(self) -> dict[str, StepCounts]:
        """Return the counts of all models; a batch is computed once, however many requests it has."""
        with self._typed_errors():
            statistics = self._client.get_inference_statistics(headers=self._headers, client_timeout=QUERY_TIMEOUT_S)
        return {
            model.name: StepCounts(
                float(model.inference_stats.success.count),
                sum(b.compute_input.ns + b.compute_infer.ns + b.compute_output.ns for b in model.batch_stats) / 1e9,
            )
            for model in statistics.model_stats
        }

    def infer(self, model: str, image: bytes, parameters: Mapping[str, Any], timeout_s: float) -> RawAnswer:
        """Return all outputs of `model` for one encoded image, by name.

        Raises `TritonTimeoutError` after `timeout_s` seconds, and any other `TritonError`.
        """
        import numpy as np
        from tritonclient.grpc import InferInput

        tensor = InferInput("IMAGE", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], dtype=object))
        with self._typed_errors():
            result = self._client.infer(
                model,
                [tensor],
                request_id=AGENT_REQUEST_ID,
                parameters=dict(parameters),
                headers=self._headers,
                client_timeout=timeout_s,
                # A sequence of one frame: sequence models require one, other models ignore it.
                sequence_id=f"segserve-{uuid4()}",
                sequence_start=True,
                sequence_end=True,
            )
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            message = str(error.message())
            if status in ("DEADLINE_EXCEEDED", "Deadline Exceeded"):
                raise TritonTimeoutError(message) from error
            # A full queue of a model is UNAVAILABLE as well; only a query of the server itself distinguishes the two.
            if status in ("UNAVAILABLE", "CANCELLED") and not self._is_live():
                raise TritonUnreachableError(message) from error
            raise TritonRefusedError(status, message) from error

    def _is_live(self) -> bool:
        from tritonclient.utils import InferenceServerException

        try:
            return bool(self._client.is_server_live(headers=self._headers, client_timeout=QUERY_TIMEOUT_S))
        except InferenceServerException:
            return False


def ensemble_of(config: Any) -> Ensemble:
    """Return the ensemble that a ModelConfig message describes; without revision and steps if it is not one of ours."""
    scheduled = config.ensemble_scheduling.step
    steps = frozenset(step.model_name for step in scheduled)
    if CONDITIONAL in config.parameters:
        steps |= frozenset(json.loads(config.parameters[CONDITIONAL].string_value))
    members = frozenset(
        member for step in scheduled if (member := member_of(step.model_name, step.input_map, step.output_map))
    )
    revision = config.parameters["revision"].string_value if "revision" in config.parameters else ""
    return Ensemble(revision, steps, members)


class Repository:
    """One group's model repository, written only by this process. Parsed configurations are cached."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parsed: dict[str, tuple[int, Ensemble]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folders(self) -> frozenset[str]:
        """Return the folder names of all models."""
        return frozenset(path.name for path in self.root.iterdir())

    def ensembles(self) -> Mapping[str, Ensemble]:
        """Return the ensemble of each public name; names with an unreadable configuration are left out."""
        public = [name for name in self.folders() if not name.startswith(STEP_PREFIX)]
        ensembles = {name: self._ensemble(name) for name in public}
        return {name: ensemble for name, ensemble in ensembles.items() if ensemble is not None}

    def touch(self, step: str) -> None:
        """Make Triton reload a step: it compares the times of the version's files, not of the configuration."""
        for path in (self.root / step / "1").iterdir():
            os.utime(path)

    def _ensemble(self, name: str) -> Ensemble | None:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        path = self.root / name / CONFIG_FILE
        try:
            changed = path.stat().st_ctime_ns
            cached = self._parsed.get(name)
            if cached is None or cached[0] != changed:
                cached = (changed, ensemble_of(text_format.Parse(path.read_text(), ModelConfig())))
                self._parsed[name] = cached
        except (OSError, ValueError, text_format.ParseError):
            return None
        return cached[1]


def log_position(log: Path) -> int:
    """Return the current size of the log in bytes, as a start for `logged_reason`."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def logged_reason(log: Path, name: str, since: int) -> str | None:
    """Return the last error about the model `name` logged after the position `since`, or None.

    Triton's API often reports that a load failed without saying why; its log says it.
    """
    errors = [text for text in _errors(log, since) if name in text]
    return errors[-1] if errors else None


def _errors(log: Path, since: int) -> list[str]:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            # A log that was truncated since then is read from its start.
            file.seek(max(since if since <= size else 0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    matches = (_ERROR.match(line) for line in text.splitlines())
    return [match["text"].strip('"') for match in matches if match]


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
        """The last snapshot; any thread may read it."""
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
        """End the server; the process that started it restarts it."""
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
        dead = self._dead(state, states)
        deaths = {} if self._processes is None else dict(self._processes.deaths)
        opened = opened_members(self._repository.root)
        loaded = dict(self._loaded)
        return replace(files, ready=True, states=states, loaded=loaded, dead=dead, deaths=deaths, opened=opened)

    def has_lost_processes(self, state: AgentState) -> bool:
        """Return whether the server has ended, or a step that was loaded in the last snapshot is dead."""
        ended = self._processes is not None and self._processes.server_runs() is False
        return ended or bool(self._dead(state, self._last.states))

    def _dead(self, state: AgentState, states: Mapping[str, str]) -> frozenset[str]:
        """Return the steps under repair or under suspicion, and the loaded ones with fewer processes than they need."""
        under_repair = {action.name for action in state.running if isinstance(action, RepairStep)}
        short: frozenset[str] = frozenset()
        if self._processes is not None:
            needed = {step: count for one in state.published() for step, count in one.processes.items()}
            ready = {step: count for step, count in needed.items() if states.get(step) == READY}
            # While a step is repaired, its former processes answer callers.
            short = self._processes.short_of({step: ready[step] for step in ready.keys() - under_repair})
        return short | under_repair | self._suspects

    def _query(self, name: str) -> None:
        try:
            self._loaded[name] = self._server.ensemble(name)
        except TritonError:
            return  # it was unloaded in between: the next snapshot shows it
