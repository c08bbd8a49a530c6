"""Runs the agent's actions; the only code of the agent that changes the server or its repository."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve_builder import sources
from segserve_builder.agent.engines import EngineCache
from segserve_builder.agent.processes import gpu_count
from segserve_builder.agent.protocol import AssignedModel, GoldenScoring
from segserve_builder.agent.server import (
    RawAnswer,
    Repository,
    TritonError,
    TritonRefusedError,
    TritonServer,
    TritonTimeoutError,
    TritonUnreachableError,
    log_position,
    logged_reason,
)
from segserve_builder.agent.state import (
    Action,
    AssignedRevision,
    Ensemble,
    LoadStep,
    Prepare,
    Prepared,
    Probe,
    Proof,
    Prove,
    Remove,
    RepairStep,
    Score,
    Serve,
    Try,
    Unload,
)
from segserve_builder.errors import BuilderError, FilesChangedError, GoldenError, OtherVersionError
from segserve_builder.golden import judging as golden
from segserve_builder.gpus import visible_gpus
from segserve_builder.render.published import PublishedSteps
from segserve_builder.render.repository import build_tree, replace
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.sources import signatures
from segserve_builder.sources.access import LOCAL, Access
from segserve_builder.sources.cache import evict, folder_path, object_path
from segserve_builder.spec.members import NOT_OPENED, OPENING, is_shared
from segserve_builder.spec.model_spec import Artifact, Signature
from segserve_builder.spec.names import ENGINES
from segserve_builder.steps.cascade import HEAVY, LIGHT, TIER
from segserve_builder.steps.crash_record import crashed_members, opened_members, part_running
from segserve_builder.steps.pipeline import NetworkArtifact, Pipeline
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.public_outputs import has_masks
from segserve_builder.steps.step_options import engines_name
from segserve_common.backoff import Backoff, RetryDelays

if TYPE_CHECKING:
    from segserve_builder.scoring.replay import GoldenScores

OnProgress: TypeAlias = "Callable[[str], None]"
IsOrdered: TypeAlias = "Callable[[], bool]"

LOAD_FAILED: Final = "LoadFailed"
LOST_GPU: Final = "LostGpu"
_NO_GPU: Final = "has kind KIND_GPU but"
"""Said by Triton of a model whose GPUs it cannot use."""
_NO_MEMORY: Final = (
    "Failed to allocate memory for requested buffer",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Said by ONNX Runtime, CUDA, cuBLAS and cuDNN, also if another model has the memory."""
_LOST_GPU: Final = re.compile(r"CUDA (?:failure|error) (?:214|220|226|700|702|709|710|714|715|716|717|718|719|999)\b")
"""ONNX Runtime's words for CUDA's errors after which a process can use its GPU no more; the driver logs most of them as
an Xid. See `cudaError_t` in https://docs.nvidia.com/cuda/cuda-runtime-api."""
UNHEALTHY: Final = "is not healthy"
"""Said by Triton of a step whose process has died, or waited for a core for longer than a second."""
PROOF_S: Final = 120.0
PROBE_S: Final = 30.0
OPENING_BACKOFF: Final = Backoff(first_s=0.02, longest_s=0.5)
"""Between two requests to a shared step that opens a member."""
LARGE_BYTES: Final = 64 * 10**6
"""Progress of smaller files is not reported: they arrive before it would be read."""
_PROGRESS_STEPS: Final = 20
_UNSIZED_STEP_BYTES: Final = 256 * 10**6
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActionFailure:
    """Why an action failed: a CamelCase reason, and a message that says what was observed and what is expected."""

    reason: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of an action.

    `suspects` are steps that did not respond to a probe, or whose process has lost its GPU, and `failing` shared ones
    with a member that failed a probe. With `server_lost_gpu` it was the server's own process.
    """

    action: Action
    failure: ActionFailure | None = None
    prepared: Prepared | None = None
    proof: Proof | None = None
    scores: GoldenScores | None = None
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    failing: frozenset[str] = frozenset()
    server_lost_gpu: bool = False
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ActionRunner:
    """Runs actions against one server. Actions on different subjects may run concurrently."""

    server: TritonServer
    repository: Repository
    cache: Path
    log: Path
    target: RenderTarget = EMBEDDED
    base: str | None = None
    """The folder that relative URIs are relative to."""
    access: Access = LOCAL
    """Where artifacts and golden sets may be downloaded from."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Ends a replay between two images."""
    gpus: Callable[[], tuple[str, ...]] = visible_gpus
    """Returns the server's GPUs."""
    gpu_count: Callable[[], int] = gpu_count
    """Returns the number of the server's GPUs, also where their driver lists none; may raise a `BuilderError`."""
    steps: PublishedSteps = field(init=False)
    engines: EngineCache = field(init=False)

    def __post_init__(self) -> None:
        root = self.repository.root
        object.__setattr__(self, "steps", PublishedSteps(root))
        object.__setattr__(self, "engines", EngineCache(self.cache, root.parent / ENGINES, self.gpus))

    def carry_out(
        self,
        action: Action,
        assigned: AssignedRevision | None,
        prepared: Prepared | None,
        on_progress: OnProgress = lambda _: None,
        is_ordered: IsOrdered = lambda: True,
    ) -> ActionResult:
        """Run the action and return its result; never raises. `assigned` and `prepared` are its revision's.

        `on_progress` is called with messages about a long download. A replay of golden images ends once `is_ordered`
        says that it is no longer required.
        """
        started_s = time.monotonic()
        try:
            result = self._do(action, assigned, prepared, on_progress, is_ordered)
        except TritonUnreachableError:
            result = ActionResult(action)  # the next snapshot shows it, with its consequences
        except BuilderError as error:
            result = ActionResult(action, ActionFailure(error.reason, str(error), error.retryable))
        except TritonTimeoutError as error:
            result = ActionResult(action, ActionFailure("ServerSlow", str(error), retryable=True))
        except TritonRefusedError as error:
            result = ActionResult(action, self._refusal(action, error))
            if prepared is not None and self._has_lost_gpu(error):
                native = bool(prepared.tree.native)
                steps = frozenset() if native else frozenset(prepared.tree.networks)
                result = dataclasses.replace(result, server_lost_gpu=native, suspects=steps)
        except Exception as error:
            _LOG.exception("%s", action)
            result = ActionResult(
                action, ActionFailure("AgentError", f"{type(error).__name__}: {error}", retryable=True)
            )
        duration_s = time.monotonic() - started_s
        if result.failure is not None:
            _LOG.warning("%s: %s: %s", action, result.failure.reason, result.failure.message)
        elif not isinstance(action, Probe):
            _LOG.info("%s: done in %.2f s", action, duration_s)
        return dataclasses.replace(result, duration_s=duration_s)

    def _do(
        self,
        action: Action,
        assigned: AssignedRevision | None,
        prepared: Prepared | None,
        on_progress: OnProgress,
        is_ordered: IsOrdered,
    ) -> ActionResult:
        match action:
            case Prepare() if assigned is not None:
                return ActionResult(action, prepared=self._prepare(assigned, on_progress))
            case LoadStep(name):
                self._load_step(name)
            case RepairStep(name):
                with self.steps.verified(name):
                    pass
                self.repository.touch(name)
                self.steps.touched(name)
                self._load_step(name)
            case Serve() if prepared is not None:
                return ActionResult(action, ensembles=self._serve(prepared))
            case Prove() if prepared is not None:
                proof = self._prove(prepared)
                self.engines.keep(prepared.tree.networks)
                return ActionResult(action, proof=proof)
            case Try() if assigned is not None and assigned.trial is not None and prepared is not None:
                folder = self._golden_folder(assigned.trial)
                tried = dataclasses.replace(prepared, assigned=assigned.trial, golden=folder)
                return ActionResult(action, prepared=tried, proof=self._prove(tried))
            case Score() if assigned is not None and assigned.scoring is not None and prepared is not None:
                return ActionResult(action, scores=self._score(assigned, assigned.scoring, prepared, is_ordered))
            case Probe() if prepared is not None:
                model, heavy = prepared.assigned.model, prepared.tree.heavy
                if heavy is None:
                    return self._probe_network(action, prepared, model)
                # By itself: while the heavy network hangs, the light one's answers go on.
                light = self._probe_network(action, prepared, model, {TIER: LIGHT})
                return light if light.suspects or light.failing else self._probe_network(action, prepared, heavy)
            case Unload(name, load_first):
                self.server.unload(name, load_first=load_first)
            case Remove(name):
                self.steps.remove(name)
                self.engines.forget(name)
        return ActionResult(action)

    def _prepare(self, assigned: AssignedRevision, on_progress: OnProgress) -> Prepared:
        spec = assigned.spec
        if (own := spec.pipeline.revision) != assigned.revision:
            raise OtherVersionError(
                f"{assigned.revision} was named by another version of segserve; this one names it {own}"
            )
        networks = {
            role: NetworkArtifact(pipeline, self._resolved(artifact))
            for role, (pipeline, artifact) in spec.networks.items()
        }
        build = partial(
            build_tree,
            networks,
            self.cache,
            self.access,
            DownloadProgress(on_progress),
            expose=spec.expose,
            metrics=spec.metrics,
            target=dataclasses.replace(self.target, has_gpu=self.gpu_count() > 0, engines=self.engines.folder),
        )
        tree = build(shared=spec.processes == "shared")
        if not crashed_members(self.repository.root).isdisjoint(tree.members):
            tree = build(shared=False)
        folder = self._golden_folder(assigned)
        if self.access.max_cache_bytes is not None:
            evict(self.cache, self.access.max_cache_bytes)
        for name, files in {**tree.members, **tree.steps}.items():
            self.steps.publish(name, files)
        alone = [network.pipeline for role, network in spec.networks.items() if role != "decoder"]
        for step, pipeline in zip(tree.networks, alone, strict=True):
            if (engines := engines_name(pipeline.artifact_sha256, pipeline.runtime)) is not None:
                self.engines.names[step] = engines
        inside = (*tree.native, *([] if tree.heavy is None else [tree.heavy]))
        processes = {**dict.fromkeys(tree.steps, 1), **tree.instances, **dict.fromkeys(inside, 0)}
        return Prepared(assigned, tree, processes, folder)

    def _resolved(self, artifact: Artifact) -> Artifact:
        absolute: dict[str, Any] = {"uri": sources.resolved(artifact.uri, self.base)}
        if artifact.signature is not None:
            absolute["signature"] = Signature(uri=sources.resolved(artifact.signature.uri, self.base))
        return artifact.model_copy(update=absolute)

    def objects(self, spec: AssignedModel) -> Iterator[Path]:
        """Yield the paths in the cache of a revision's files, whether they were fetched yet or not."""
        for _, artifact in spec.networks.values():
            yield object_path(self.cache, artifact.sha256)
        if spec.golden is not None:
            yield folder_path(self.cache, spec.golden.sha256)

    def _golden_folder(self, assigned: AssignedRevision) -> Path | None:
        if assigned.spec.golden is None:
            return None
        uri = sources.resolved(assigned.spec.golden.uri, self.base)
        sha256 = assigned.spec.golden.sha256
        folder = sources.fetch_folder(uri, sha256, self.cache, self.access)
        signatures.verify_golden(uri, sha256, folder, self.cache, self.access)
        golden.load(folder)
        output = assigned.spec.pipeline.output
        if _has_masks(assigned.spec.pipeline) and "encoding" not in output.overrides and output.encoding != "rle":
            raise GoldenError(
                "golden sets are compared as rle: add encoding to output.overrides, or set output.encoding to rle"
            )
        return folder

    def _load_step(self, name: str) -> None:
        loaded = False
        self.engines.restore(name)
        try:
            with self.steps.verified(name):
                self._load(name)
                loaded = True
        except TritonError:
            self.engines.discard(name)
            raise
        except FilesChangedError:
            if loaded:
                self.server.unload(name)
            raise

    def _load(self, name: str) -> None:
        since = log_position(self.log)
        try:
            self.server.load(name)
        except TritonRefusedError as error:
            raise TritonRefusedError(error.status, self._explained(str(error), name, since)) from error

    def _explained(self, message: str, name: str, since: int) -> str:
        """Add the reason of a failed load from Triton's log, and leave out a step's traceback."""
        logged = logged_reason(self.log, name, since) if "failed to poll" in message else None
        return f"{message}: {logged}" if logged else " ".join(message.partition("\n\nAt:")[0].split())

    def _serve(self, prepared: Prepared) -> dict[str, Ensemble]:
        outcomes = prepared.outcomes(opened_members(self.repository.root))
        for member, failure in outcomes.items():
            if failure != "":
                raise TritonRefusedError("UNAVAILABLE", failure or f"{member} {OPENING}")
        ensembles = {}
        for name, files in prepared.tree.public.items():
            replace(files, self.repository.root / name)
            self._load(name)
            # Triton may report success and keep the previous version, so the loaded one is read back.
            ensembles[name] = self.server.ensemble(name)
            revision, expected = ensembles[name].revision, prepared.assigned.revision
            if revision != expected:
                raise TritonRefusedError("", f"{name} is {revision!r} after its load; expected {expected!r}")
        return ensembles

    def _prove(self, prepared: Prepared) -> Proof:
        cascade = prepared.assigned.spec.pipeline.cascade
        tiers: list[dict[str, Any]] = [{}] if cascade is None else [{TIER: tier} for tier in (HEAVY, LIGHT)]
        if prepared.assigned.spec.golden is None:
            image = golden.builtin_image()
            for tier in tiers:
                rle = {**_as_rle(prepared), **tier, **_builtin_prompt(prepared)}
                golden.check_builtin(self._infer(prepared, image, rle), self._infer(prepared, image, rle))
            return self._located(Proof("builtin", None), prepared)
        # The expected answers come from the model's own network, whatever its cascade makes of an image.
        parameters = {**_as_rle(prepared), **tiers[0]}
        images, names = 0, {one.id: one.name for one in prepared.assigned.spec.pipeline.classes}
        for case, image in _cases(prepared):
            golden.compare(case, self._infer(prepared, image, {**parameters, **case.parameters()}), names)
            images += 1
        bound = None
        if cascade is not None and cascade.max_loss is not None:
            bound = self._cascade_loss(prepared, cascade.max_loss)
        return self._located(Proof("golden", prepared.assigned.spec.golden.sha256, images, bound), prepared)

    def _located(self, proof: Proof, prepared: Prepared) -> Proof:
        devices = {device for step in prepared.tree.networks for device in self.server.devices(step)}
        return dataclasses.replace(proof, devices=tuple(sorted(devices)), gpus=self.gpus())

    def _cascade_loss(self, prepared: Prepared, max_loss: float) -> float:
        """Return the bound of what the cascade loses; raises `GoldenError` if that is more than was declared."""
        from segserve_builder.golden.risk_control import check_loss
        from segserve_builder.scoring.cascade_loss import cascade_losses
        from segserve_builder.scoring.regions import read_golden_images

        spec = prepared.assigned.spec
        assert prepared.golden is not None
        assert spec.golden is not None
        images = read_golden_images(prepared.golden, spec.golden.sha256, spec.pipeline)
        losses = cascade_losses(
            images,
            lambda image: self._infer(prepared, image, {**images.parameters, TIER: HEAVY}),
            lambda image: self._infer(prepared, image, images.parameters),
        )
        try:
            return check_loss(losses, max_loss)
        except ValueError as error:
            raise GoldenError(f"cascade.maxLoss: {error}") from error

    def _score(
        self, assigned: AssignedRevision, scoring: GoldenScoring, prepared: Prepared, is_ordered: IsOrdered
    ) -> GoldenScores:
        from segserve_builder.scoring.regions import read_golden_images
        from segserve_builder.scoring.replay import replay

        spec = assigned.spec.model_copy(update={"golden": scoring.golden})
        folder = self._golden_folder(dataclasses.replace(assigned, spec=spec))
        assert folder is not None

        def infer(image: bytes, parameters: Mapping[str, Any]) -> RawAnswer | None:
            self._check_ordered(is_ordered)
            try:
                return self._infer(prepared, image, parameters)
            except TritonRefusedError as error:
                if error.status == "UNAVAILABLE" or self._lacks_gpu_memory(error) or self._has_lost_gpu(error):
                    raise  # this says nothing about the image
                return None

        return replay(read_golden_images(folder, scoring.golden.sha256, spec.pipeline), infer, self.stopping.wait)

    def _check_ordered(self, is_ordered: IsOrdered) -> None:
        if self.stopping.is_set() or not is_ordered():
            raise TritonUnreachableError("the agent stops, or the answers are no longer needed")

    def _infer(self, prepared: Prepared, image: bytes, parameters: Mapping[str, Any] | None = None) -> RawAnswer:
        answer = self._answer(prepared, image, parameters or {})
        revisions = [bytes(revision).decode(errors="replace") for revision in answer.get("REVISION", ())]
        if revisions != [prepared.assigned.revision]:
            raise GoldenError(f"REVISION is {revisions!r}; expected {prepared.assigned.revision!r}")
        return answer

    def _answer(self, prepared: Prepared, image: bytes, parameters: Mapping[str, Any]) -> RawAnswer:
        """Return the server's answer, once its shared steps have opened the revision's members."""
        give_up_s, delays = time.monotonic() + PROOF_S, RetryDelays(OPENING_BACKOFF)
        while True:
            try:
                return self.server.infer(prepared.assigned.model, image, parameters, PROOF_S)
            except TritonRefusedError as error:
                opens = error.status == "UNAVAILABLE" and OPENING in str(error)
                if not opens or time.monotonic() > give_up_s or self.stopping.wait(delays.next_s()):
                    raise

    def _probe_network(
        self, action: Probe, prepared: Prepared, model: str, parameters: Mapping[str, Any] | None = None
    ) -> ActionResult:
        if prepared.golden is None:
            image, prompt = golden.builtin_image(), _builtin_prompt(prepared)
        else:
            case, image = next(_cases(prepared))
            prompt = case.parameters()
        own = frozenset(step for step in prepared.steps if not is_shared(step) and step != prepared.tree.heavy)
        shared = {step: self.server.answered(step) for step in prepared.steps if is_shared(step)}
        answered = self.server.answered(model)
        try:
            self.server.infer(model, image, {**(parameters or {}), **prompt}, PROBE_S)
        except TritonTimeoutError:
            # Load can delay a probe, but then other requests are answered meanwhile.
            stuck = self.server.answered(model) == answered
            still = [step for step, before in shared.items() if self.server.answered(step) == before]
            if stuck:
                for step in still:  # what hangs there would hang in the next process
                    part_running(self.repository.root, step)
            return ActionResult(action, suspects=own.union(still) if stuck else frozenset())
        except TritonRefusedError as error:
            if self._has_lost_gpu(error) and prepared.tree.native:  # no load by that server would help
                raise
            if self._lacks_gpu_memory(error):  # loading this model again would need more
                _LOG.warning("a probe of %s: %s", model, error)
                return ActionResult(action)
            broken = error.status in ("INTERNAL", "UNKNOWN")
            if broken and (failed := [member for member in prepared.tree.members if member in str(error)]):
                # Its step opens it anew: nothing is wrong with what other models use, unless that does not help.
                failing = frozenset(prepared.tree.member_steps[member] for member in failed)
                return ActionResult(action, failing=failing)
            # Triton names a step whose process has ended.
            ended = frozenset(step for step in shared if step in str(error))
            return ActionResult(action, suspects=(ended or own) if broken else frozenset())
        return ActionResult(action, ensembles={model: self.server.ensemble(model)})

    def _refusal(self, action: Action, error: TritonError) -> ActionFailure | None:
        match action:
            case LoadStep() if _NO_GPU in str(error):
                shown = ", ".join(self.gpus()) or "no GPU"
                found = f"runtime.device is gpu, but Triton can use no GPU of this server, whose driver shows {shown}"
                advice = "give the pool's servers a GPU (spec.server.resources.limits), or set runtime.device to auto"
                return ActionFailure(LOAD_FAILED, f"{found}; {advice}", retryable=True)
            case LoadStep() | Serve():
                return ActionFailure(LOAD_FAILED, str(error), retryable=True)
            case RepairStep():
                return ActionFailure("RepairFailed", str(error), retryable=True)
            case Prove() if NOT_OPENED in str(error):
                return ActionFailure(LOAD_FAILED, str(error), retryable=True)
            case Prove() | Try() | Score():
                refused = isinstance(error, TritonRefusedError) and error.status == "UNAVAILABLE"
                if self._lacks_gpu_memory(error):
                    return ActionFailure("OutOfMemory", str(error), retryable=True)
                if self._has_lost_gpu(error):
                    return ActionFailure(LOST_GPU, str(error), retryable=True)
                passing = refused or UNHEALTHY in str(error)
                return ActionFailure("ProofFailed", str(error), retryable=passing)
            case Unload():
                return None  # it was not loaded any more: the next snapshot shows it
        return ActionFailure("ServerRefused", str(error), retryable=True)

    def _lacks_gpu_memory(self, error: TritonError) -> bool:
        """Return whether a GPU has no memory left, perhaps because of another model."""
        return any(said in str(error) for said in _NO_MEMORY) and bool(self.gpus())

    def _has_lost_gpu(self, error: TritonError) -> bool:
        """Return whether the process that ran the network can use its GPU no more."""
        return _LOST_GPU.search(str(error)) is not None and bool(self.gpus())


def _has_masks(pipeline: Pipeline) -> bool:
    return has_masks(check_postprocess(pipeline))


def _as_rle(prepared: Prepared) -> Mapping[str, Any]:
    """Return the parameters of a request whose masks are to be run lengths, as golden images are compared by."""
    pipeline = prepared.assigned.spec.pipeline
    return {"encoding": "rle"} if _has_masks(pipeline) and "encoding" in pipeline.output.overrides else {}


def _builtin_prompt(prepared: Prepared) -> dict[str, str]:
    """Return the parameters of the built-in image: without a prompt the decoder of a promptable model does not run."""
    return {} if prepared.assigned.spec.pipeline.decoder is None else golden.BUILTIN_PROMPT.parameters()


def _cases(prepared: Prepared) -> Iterator[tuple[golden.Case, bytes]]:
    folder = prepared.golden
    if folder is not None:
        for case in golden.load(folder).cases:
            yield case, (folder / case.image).read_bytes()


class DownloadProgress:
    """Reports the progress of one download, every twentieth of its size, or every 256 MB if the size is unknown."""

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self._on_progress = on_progress
        self._reported: tuple[int | None, int] | None = None

    def __call__(self, done: int, size: int | None) -> None:
        """Record that `done` of `size` bytes have arrived."""
        if (size or done) < LARGE_BYTES:
            return
        reached = (size, done * _PROGRESS_STEPS // size if size else done // _UNSIZED_STEP_BYTES)
        if reached == self._reported:
            return
        self._reported = reached
        total = f" of {size / 1e6:.0f}" if size else ""
        self._on_progress(f"downloaded {done / 1e6:.0f}{total} MB of the artifact")
