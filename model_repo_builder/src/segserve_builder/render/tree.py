"""Renders one revision as the files of a Triton repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from segserve_builder.errors import UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.promptable import DecoderIO
from segserve_builder.render import config
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.spec.members import OPTIONS_FILE, member_name
from segserve_builder.spec.model_spec import COUNTED, ModelMetrics
from segserve_builder.spec.names import canonical_json, network_alias, step_name
from segserve_builder.steps.cascade import check_cascade
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.preprocess_rules import check_network_input, check_preprocess, common_io
from segserve_builder.steps.public_outputs import Task
from segserve_builder.steps.step_options import (
    DECODER_FILE,
    MODEL_FILE,
    DecoderOptions,
    HeavyOptions,
    NetOptions,
    PipelineOptions,
    PostOptions,
    PreOptions,
    StepOptions,
)
from segserve_builder.steps.streams import smoothing_of

Files: TypeAlias = Mapping[str, bytes | Path]
"""Contents by relative POSIX path; a `Path` is the verified artifact file, never read into memory."""

CONFIG_FILE: Final = "config.pbtxt"
EMPTY_VERSION: Final[Files] = {"1/.keep": b""}
"""The version's folder of an ensemble: object stores and git drop empty ones."""


_SHARED: Final = {"net": "SharedNetworks", "post": "SharedPostprocess"}
LARGEST_SHARED_BYTES: Final = 32 * 2**20
"""Larger networks have a step of their own: its process is a small part of what they need, and opening them is slow."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Whether a model's last step is shared with other models, and then also its networks."""

    post: bool = False
    networks: bool = False

    def __post_init__(self) -> None:
        if self.networks and not self.post:
            raise ValueError("networks are shared with a last step that is: it takes what selects them")


OWN: Final = Sharing()
"""Each model has a last step, and each network a step, of its own."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network's file and its tensors; with `single` the file's input has no batch."""

    io: NetworkIO
    artifact: Path
    single: bool = False


@dataclass(frozen=True, slots=True)
class PromptDecoderFile:
    """A prompt decoder's file and its tensors."""

    io: DecoderIO
    artifact: Path


@dataclass(frozen=True, slots=True)
class Tree:
    """One revision's models: immutable steps, and ensembles with mutable names that call them.

    `steps` are in the order of processing, `networks` the names of the steps that run a network in order, `instances`
    how many each of these has on a device, `native` the steps among them without a process of their own; `heavy` is the
    step that is an ensemble of the others before it, which a cascade calls. `public` holds the ensemble of the model's
    name, and the bare network's if it was added. `members` are what the shared steps run for this revision, which
    Triton does not load, and `member_steps` the step that runs each of them.
    """

    steps: Mapping[str, Files]
    ensemble: tuple[str, Files]
    network: tuple[str, Files] | None = field(default=None)
    networks: tuple[str, ...] = ()
    instances: Mapping[str, int] = field(default_factory=dict)
    native: frozenset[str] = frozenset()
    heavy: str | None = None
    members: Mapping[str, Files] = field(default_factory=dict)
    member_steps: Mapping[str, str] = field(default_factory=dict)

    @property
    def public(self) -> Mapping[str, Files]:
        """The ensembles by name."""
        return dict(item for item in (self.network, self.ensemble) if item is not None)


def render(
    pipeline: Pipeline,
    network: Network,
    second: Network | None = None,
    target: RenderTarget = EMBEDDED,
    metrics: ModelMetrics = COUNTED,
    sharing: Sharing = OWN,
    light: Network | None = None,
    *,
    apart: bool = False,
    decoder: PromptDecoderFile | None = None,
) -> Tree:
    """Render `pipeline` over its network; `second` is its second one.

    `light` is the light network of its cascade, if it has one, whose steps are never shared. `metrics`, `sharing` and
    `apart`, which gives the network a step of its own in any case, change steps and no answer. A network with a prompt
    `decoder` always is in one step with it. Pure: equal arguments give an equal tree. Raises `UnknownNameError` for the
    family, and `PipelineError` if the stages do not fit each other or the network.
    """
    for each in pipeline.networks:
        if each.family not in FAMILIES:
            raise UnknownNameError("family", each.family, FAMILIES)
    check_cascade(pipeline)
    if light is None or pipeline.cascade is None or pipeline.light is None:
        if decoder is not None or (target.joins_steps(pipeline) and not sharing.post and not apart):
            only = _joined_tier(pipeline, network, target, metrics, decoder)
        else:
            only = _tier(pipeline, pipeline.revision, network, second, target, metrics, sharing)
        only.ensemble.name = pipeline.model
        return Tree(
            {step.name: step.files for step in only.steps},
            (pipeline.model, _ensemble_files(only.ensemble)),
            networks=only.networks,
            instances=only.instances,
            native=only.native,
            members=dict(step.member for step in only.steps if step.member is not None),
            member_steps={step.member[0]: step.name for step in only.steps if step.member is not None},
        )
    heavy = _tier(pipeline, pipeline.revision, network, second, target, metrics, OWN)
    inner = _named("heavy", heavy.ensemble, EMPTY_VERSION)
    options = HeavyOptions(
        cascade=pipeline.cascade,
        model=inner.name,
        max_requests=pipeline.runtime.concurrent_requests,
        max_queue_size=pipeline.runtime.max_queue_size,
    )
    called = (inner.name, *(step.name for step in heavy.steps))
    first = _tier(pipeline.light, pipeline.revision, light, None, target, metrics, OWN, options, called)
    first.ensemble.name = pipeline.model
    return Tree(
        {step.name: step.files for step in (*heavy.steps, inner, *first.steps)},
        (pipeline.model, _ensemble_files(first.ensemble)),
        networks=(*heavy.networks, *first.networks),
        instances={**heavy.instances, **first.instances},
        native=heavy.native | first.native,
        heavy=inner.name,
    )


def _tier(
    pipeline: Pipeline,
    revision: str,
    first: Network,
    second: Network | None,
    target: RenderTarget,
    metrics: ModelMetrics,
    sharing: Sharing,
    heavy: HeavyOptions | None = None,
    conditional: tuple[str, ...] = (),
) -> _Tier:
    io = first.io
    given = io if second is None else common_io(io, second.io)
    task = _checked(pipeline, given)
    post = PostOptions.of(pipeline, io, None if second is None else second.io, metrics)
    post = post.model_copy(update={"revision": revision, "heavy": heavy})
    before = target.stage_instances(pipeline)
    pre_step = _step("pre", config.preprocess_config(PreOptions.of(pipeline, given, measures=post.measures), before))
    networks = [(pipeline, first)]
    if smoothing_of(pipeline) is not None:
        sharing = OWN  # it keeps streams between requests
    if pipeline.second is not None and second is not None:
        networks.append((pipeline.second, second))
    nets = [_network_step(given, network, target, sharing) for given, network in networks]
    native = {
        step.name
        for step, (given, network) in zip(nets, networks, strict=True)
        if target.runs_natively(given, network.io)
    }
    beside = (nets[1].name, networks[1][1].io) if len(nets) > 1 else None
    # Streams are kept, and the heavy network's answers are sent, by one process.
    after = 1 if heavy is not None or smoothing_of(pipeline) is not None or sharing.post else before
    post_message, members = config.postprocess_config(post, task, after), None
    if sharing.post:
        chosen = {number: step.member[0] for number, step in enumerate(nets) if step.member is not None}
        post_step = _shared_step("post", config.shared_postprocess(post_message, tuple(chosen)), post)
        assert post_step.member is not None
        members = config.Members(chosen, post_step.member[0])
    else:
        post_step = _step("post", post_message)
    names = (pre_step.name, nets[0].name, post_step.name)
    ensemble = config.ensemble_config(
        pipeline,
        revision,
        io,
        task,
        names,
        beside,
        measures=post.measures,
        members=members,
        conditional=conditional,
    )
    instances = {step.name: given.runtime.instances for step, (given, _) in zip(nets, networks, strict=True)}
    instances |= {pre_step.name: before, post_step.name: after}
    return _Tier(
        (pre_step, *nets, post_step), ensemble, tuple(step.name for step in nets), frozenset(native), instances
    )


def _joined_tier(
    pipeline: Pipeline,
    network: Network,
    target: RenderTarget,
    metrics: ModelMetrics,
    decoder: PromptDecoderFile | None,
) -> _Tier:
    task = _checked(pipeline, network.io)
    read = network.io if decoder is None else replace(network.io, outputs=decoder.io.outputs)
    post = PostOptions.of(pipeline, read, None, metrics)
    files: dict[str, bytes | Path] = {f"1/{MODEL_FILE}": network.artifact}
    prompts = None
    if decoder is not None and pipeline.decoder is not None:
        prompts = DecoderOptions(io=decoder.io, **pipeline.decoder.model_dump())
        files[f"1/{DECODER_FILE}"] = decoder.artifact
    options = PipelineOptions(
        pre=PreOptions.of(pipeline, network.io, measures=post.measures),
        net=NetOptions.of(pipeline, network.io),
        post=post,
        decoder=prompts,
    )
    message = config.pipeline_config(options, task, target)
    step = _step("pipeline", message, files)
    ensemble = config.joined_ensemble_config(pipeline, pipeline.revision, task, step.name)
    return _Tier((step,), ensemble, (step.name,), frozenset(), {step.name: target.joined_instances})


def _checked(pipeline: Pipeline, given: NetworkIO) -> Task:
    """Return the task of a pipeline whose stages fit each other and what the network is given."""
    check_preprocess(pipeline.preprocess, pipeline.input)
    check_network_input(pipeline.preprocess, pipeline.input, given.input, given.layout)
    return check_postprocess(pipeline)


def with_network_alias(tree: Tree, pipeline: Pipeline, io: NetworkIO) -> Tree:
    """Return `tree` with the bare network as the public `<model>.network`; this does not change the revision."""
    name = network_alias(pipeline.model)
    net = tree.networks[0]
    files = _ensemble_files(config.network_alias_config(name, pipeline, io, net, native=net in tree.native))
    return replace(tree, network=(name, files))


@dataclass(frozen=True, slots=True)
class _Step:
    """A step's name and files, and its member if it is shared."""

    name: str
    files: Files
    member: tuple[str, Files] | None = None


class _Tier(NamedTuple):
    """The steps of a network, or of two that run beside each other, and the yet unnamed ensemble of them."""

    steps: tuple[_Step, ...]
    ensemble: Any
    networks: tuple[str, ...]
    native: frozenset[str]
    instances: Mapping[str, int]


def _network_step(pipeline: Pipeline, network: Network, target: RenderTarget, sharing: Sharing) -> _Step:
    options, native = NetOptions.of(pipeline, network.io), target.runs_natively(pipeline, network.io)
    message = config.network_config(options, network.io, pipeline.runtime, target, native=native, single=network.single)
    artifact = {f"1/{MODEL_FILE}": network.artifact}
    if native:
        return _named("net", message, artifact)
    if sharing.networks and _may_share(pipeline, network):
        return _shared_step("net", config.shared_network(message), options, artifact)
    return _step("net", message, artifact)


def _may_share(pipeline: Pipeline, network: Network) -> bool:
    """Return whether a network takes so little time and memory that others may wait for it, as they then do."""
    runtime = pipeline.runtime
    chosen = runtime.instances > 1 or runtime.intra_op_threads > 0 or bool(pipeline.inference)
    elsewhere = runtime.device == "gpu" or runtime.engine is not None
    return not chosen and not elsewhere and network.artifact.stat().st_size <= LARGEST_SHARED_BYTES


def _step(kind: str, message: Any, extra: Files | None = None) -> _Step:
    return _named(kind, message, _code(f"{kind} import TritonPythonModel") | dict(extra or {}))


def _shared_step(kind: str, message: Any, options: StepOptions, extra: Files | None = None) -> _Step:
    """Return the step of a configuration without options, and what it runs with these options as its member."""
    step = _named(f"{kind}-shared", message, _code(f"shared import {_SHARED[kind]} as TritonPythonModel"))
    content = {"step": step.name, "options": options.to_parameter()}
    files: Files = {OPTIONS_FILE: canonical_json(content).encode(), **(extra or {})}
    return replace(step, member=(member_name(kind, content), files))


def _code(imported: str) -> dict[str, bytes | Path]:
    code = f'from segserve_builder.backend.{imported}\n\n__all__ = ["TritonPythonModel"]\n'
    return {
        "1/model.py": code.encode(),
        # A file blocks the folder of Python's bytecode cache: Triton would take a written cache for a modification of
        # the step, and reload it under every model that shares it.
        "1/__pycache__": b"",
    }


def _named(kind: str, message: Any, files: Files) -> _Step:
    message.name = step_name(kind, config.to_plain(message))
    return _Step(message.name, {CONFIG_FILE: config.to_pbtxt(message), **files})


def _ensemble_files(message: Any) -> Files:
    return {CONFIG_FILE: config.to_pbtxt(message), **EMPTY_VERSION}
