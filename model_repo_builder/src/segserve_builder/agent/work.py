"""Carries out one action: the only place where an agent changes its server or its repository."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve_builder import sources
from segserve_builder.agent import triton_log
from segserve_builder.agent.arrival import DownloadProgress
from segserve_builder.agent.server import TritonError, TritonRefusedError, TritonTimeoutError, TritonUnreachableError
from segserve_builder.agent.state import (
    LoadStep,
    Prepare,
    Prepared,
    Probe,
    Proof,
    Prove,
    Remove,
    RepairStep,
    Serve,
    Unload,
)
from segserve_builder.errors import BuilderError, GoldenError, OtherVersionError
from segserve_builder.golden import judging as golden
from segserve_builder.render.publish import publish, remove, replace
from segserve_builder.render.repository import build_tree
from segserve_builder.render.target import EMBEDDED
from segserve_builder.sources.access import LOCAL
from segserve_builder.sources.cache import folder_path, object_path
from segserve_builder.sources.eviction import evict
from segserve_builder.spec.model_spec import Signature
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.public_outputs import has_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from segserve_builder.agent.protocol import AssignedModel
    from segserve_builder.agent.repository import Repository
    from segserve_builder.agent.server import RawAnswer, TritonServer
    from segserve_builder.agent.state import Action, AssignedRevision, Ensemble
    from segserve_builder.render.target import RenderTarget
    from segserve_builder.sources.access import Access
    from segserve_builder.spec.model_spec import Artifact
    from segserve_builder.steps.pipeline import Pipeline

OnProgress: TypeAlias = "Callable[[str], None]"

PROOF_S: Final = 120.0
PROBE_S: Final = 30.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActionFailure:
    """Why an action failed: one CamelCase word, and a text that says what was seen and what is allowed."""

    reason: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What an action brought. `suspects` are steps that a probe found not to answer."""

    action: Action
    problem: ActionFailure | None = None
    prepared: Prepared | None = None
    proof: Proof | None = None
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ActionRunner:
    """Everything that actions need. Actions on different subjects may be carried out at the same time."""

    server: TritonServer
    repository: Repository
    cache: Path
    log: Path
    target: RenderTarget = EMBEDDED
    base: str | None = None
    """The folder that relative URIs are relative to."""
    access: Access = LOCAL
    """What may be reached for artifacts and golden sets."""

    def carry_out(
        self, action: Action, told: AssignedRevision | None, prepared: Prepared | None, say: OnProgress = lambda _: None
    ) -> ActionResult:
        """Do it and return what it brought; never raises. `told` and `prepared` are those of its revision.

        `say` hears meanwhile how far a long one has come.
        """
        started_s = time.monotonic()
        outcome = self._attempt(action, told, prepared, say)
        duration_s = time.monotonic() - started_s
        if outcome.problem is not None:
            _LOG.warning("%s: %s: %s", action, outcome.problem.reason, outcome.problem.message)
        elif not isinstance(action, Probe):
            _LOG.info("%s: done in %.2f s", action, duration_s)
        return ActionResult(
            action,
            outcome.problem,
            outcome.prepared,
            outcome.proof,
            outcome.ensembles,
            outcome.suspects,
            duration_s,
        )

    def _attempt(
        self, action: Action, told: AssignedRevision | None, prepared: Prepared | None, say: OnProgress
    ) -> ActionResult:
        try:
            return self._do(action, told, prepared, say)
        except TritonUnreachableError:
            return ActionResult(action)  # the next look says so, and what follows from it
        except BuilderError as error:
            return ActionResult(action, ActionFailure(error.reason, str(error), error.retryable))
        except TritonTimeoutError as error:
            return ActionResult(action, ActionFailure("ServerSlow", str(error), retryable=True))
        except TritonRefusedError as error:
            return ActionResult(action, self._refusal(action, error))
        except Exception as error:
            _LOG.exception("%s", action)
            return ActionResult(action, ActionFailure("AgentError", f"{type(error).__name__}: {error}", retryable=True))

    def _do(
        self, action: Action, told: AssignedRevision | None, prepared: Prepared | None, say: OnProgress
    ) -> ActionResult:
        match action:
            case Prepare() if told is not None:
                return ActionResult(action, prepared=self._prepare(told, say))
            case LoadStep(name):
                self._load(name)
            case RepairStep(name):
                self.repository.touch(name)
                self._load(name)
            case Serve() if prepared is not None:
                return ActionResult(action, ensembles=self._serve(prepared))
            case Prove() if prepared is not None:
                return ActionResult(action, proof=self._prove(prepared))
            case Probe() if prepared is not None:
                return self._probe(action, prepared)
            case Unload(name):
                self.server.unload(name)
            case Remove(name):
                remove(self.repository.root / name)
        return ActionResult(action)

    def _prepare(self, told: AssignedRevision, say: OnProgress) -> Prepared:
        spec = told.spec
        if (own := spec.pipeline.revision) != told.revision:
            raise OtherVersionError(f"{told.revision} was named by another version of segserve; here it is {own}")
        first = self._resolved(spec.artifact)
        second = self._resolved(spec.second_artifact) if spec.second_artifact is not None else None
        tree = build_tree(
            spec.pipeline, first, spec.expose, self.cache, second, self.target, self.access, DownloadProgress(say)
        )
        folder = self._golden_folder(told)
        if self.access.max_cache_bytes is not None:
            evict(self.cache, self.access.max_cache_bytes)
        for name, files in tree.steps.items():
            publish(files, self.repository.root / name)
        runtimes = (network.runtime for network in spec.pipeline.networks)
        copies = dict(zip(tree.networks, (runtime.instances for runtime in runtimes), strict=True))
        processes = dict.fromkeys(tree.steps, 1) | copies | dict.fromkeys(tree.native, 0)
        return Prepared(told, tree, processes, folder)

    def _resolved(self, artifact: Artifact) -> Artifact:
        absolute: dict[str, Any] = {"uri": sources.resolved(artifact.uri, self.base)}
        if artifact.signature is not None:
            absolute["signature"] = Signature(uri=sources.resolved(artifact.signature.uri, self.base))
        return artifact.model_copy(update=absolute)

    def objects(self, spec: AssignedModel) -> Iterator[Path]:
        """Yield where in the cache the files of a revision are, once they were fetched."""
        yield object_path(self.cache, spec.artifact.sha256)
        if spec.second_artifact is not None:
            yield object_path(self.cache, spec.second_artifact.sha256)
        if spec.golden is not None:
            yield folder_path(self.cache, spec.golden.sha256)

    def _golden_folder(self, told: AssignedRevision) -> Path | None:
        if told.spec.golden is None:
            return None
        uri = sources.resolved(told.spec.golden.uri, self.base)
        folder = sources.fetch_folder(uri, told.spec.golden.sha256, self.cache, self.access)
        golden.load(folder)
        output = told.spec.pipeline.output
        if _has_masks(told.spec.pipeline) and "encoding" not in output.overrides and output.encoding != "rle":
            raise GoldenError("golden answers are asked as rle: allow encoding in output.overrides, or make it rle")
        return folder

    def _load(self, name: str) -> None:
        since = triton_log.position(self.log)
        try:
            self.server.load(name)
        except TritonRefusedError as error:
            raise TritonRefusedError(error.status, self._explained(str(error), name, since)) from error

    def _explained(self, message: str, name: str, since: int) -> str:
        """Add what only the log says to a refused load's message, and leave out the traceback of a step."""
        logged = triton_log.reason(self.log, name, since) if "failed to poll" in message else None
        return f"{message}: {logged}" if logged else " ".join(message.partition("\n\nAt:")[0].split())

    def _serve(self, prepared: Prepared) -> dict[str, Ensemble]:
        held = {}
        for name, files in prepared.tree.public.items():
            replace(files, self.repository.root / name)
            self._load(name)
            held[name] = self.server.ensemble(name)  # a load's success proves nothing
            if held[name].revision != prepared.told.revision:
                seen = held[name].revision
                raise TritonRefusedError("", f"{name} is {seen!r} after its load; expected {prepared.told.revision!r}")
        return held

    def _prove(self, prepared: Prepared) -> Proof:
        if prepared.told.spec.golden is None:
            image = golden.builtin_image()
            golden.check_builtin(self._ask(prepared, image), self._ask(prepared, image))
            return Proof("builtin", None)
        pipeline = prepared.told.spec.pipeline
        as_rle = {"encoding": "rle"} if _has_masks(pipeline) and "encoding" in pipeline.output.overrides else {}
        for case, image in _cases(prepared):
            golden.compare(case, self._ask(prepared, image, as_rle))
        return Proof("golden", prepared.told.spec.golden.sha256)

    def _ask(self, prepared: Prepared, image: bytes, parameters: Mapping[str, Any] | None = None) -> RawAnswer:
        answer = self.server.infer(prepared.told.model, image, parameters or {}, PROOF_S)
        seen = [bytes(revision).decode(errors="replace") for revision in answer.get("REVISION", ())]
        if seen != [prepared.told.revision]:
            raise GoldenError(f"REVISION is {seen!r}; expected {prepared.told.revision!r}")
        return answer

    def _probe(self, action: Probe, prepared: Prepared) -> ActionResult:
        model = prepared.told.model
        image = golden.builtin_image() if prepared.golden is None else next(_cases(prepared))[1]
        answered = self.server.answered(model)
        try:
            self.server.infer(model, image, {}, PROBE_S)
        except TritonTimeoutError:
            # Many callers can make a probe wait; that nobody got an answer meanwhile they cannot.
            stuck = self.server.answered(model) == answered
            return ActionResult(action, suspects=frozenset(prepared.steps if stuck else ()))
        except TritonRefusedError as error:
            broken = error.status in ("INTERNAL", "UNKNOWN")
            return ActionResult(action, suspects=frozenset(prepared.steps if broken else ()))
        return ActionResult(action, ensembles={model: self.server.ensemble(model)})

    def _refusal(self, action: Action, error: TritonError) -> ActionFailure | None:
        match action:
            case LoadStep() | Serve():
                return ActionFailure("LoadFailed", str(error), retryable=False)
            case RepairStep():
                return ActionFailure("RepairFailed", str(error), retryable=True)
            case Prove():
                passing = isinstance(error, TritonRefusedError) and error.status == "UNAVAILABLE"
                return ActionFailure("ProofFailed", str(error), retryable=passing)
            case Unload():
                return None  # it was not loaded any more: the next look says so
        return ActionFailure("ServerRefused", str(error), retryable=True)


def _has_masks(pipeline: Pipeline) -> bool:
    return has_masks(check_postprocess(pipeline))


def _cases(prepared: Prepared) -> Iterator[tuple[golden.Case, bytes]]:
    folder = prepared.golden
    if folder is not None:
        for case in golden.load(folder).cases:
            yield case, (folder / case.image).read_bytes()
