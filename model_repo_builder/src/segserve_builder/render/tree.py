"""Renders one revision as the files of a Triton repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from segserve_builder.errors import UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO
from segserve_builder.render import config
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.spec.names import network_alias, step_name
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.preprocess_rules import check_network_input, check_preprocess, common_input
from segserve_builder.steps.step_options import MODEL_FILE, NetOptions, PostOptions, PreOptions

Files: TypeAlias = Mapping[str, bytes | Path]
"""Contents by relative POSIX path; a `Path` is the verified artifact file, never read into memory."""

CONFIG_FILE: Final = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class Network:
    """A network's file and its tensors."""

    io: NetworkIO
    artifact: Path


@dataclass(frozen=True, slots=True)
class Tree:
    """One revision's models: immutable steps, and ensembles with mutable names that call them.

    `steps` are in the order of processing, `networks` the names of the steps that run a network in order, `native`
    those of them without a process of their own; `public` holds the ensemble of the model's name, and that of the bare
    network if it was added.
    """

    steps: Mapping[str, Files]
    ensemble: tuple[str, Files]
    network: tuple[str, Files] | None = field(default=None)
    networks: tuple[str, ...] = ()
    native: frozenset[str] = frozenset()

    @property
    def public(self) -> Mapping[str, Files]:
        """The ensembles by name."""
        return dict(item for item in (self.network, self.ensemble) if item is not None)


def render(
    pipeline: Pipeline, io: NetworkIO, artifact: Path, second: Network | None = None, target: RenderTarget = EMBEDDED
) -> Tree:
    """Render `pipeline` over the network file `artifact`, whose tensors are `io`; `second` is its second network.

    Pure: equal arguments give an equal tree. Raises `UnknownNameError` for the family, and `PipelineError` if the
    stages do not fit each other or the network.
    """
    for network in pipeline.networks:
        if network.family not in FAMILIES:
            raise UnknownNameError("family", network.family, FAMILIES)
    given = io if second is None else replace(io, input=common_input(io, second.io))
    check_preprocess(pipeline.preprocess, pipeline.input)
    check_network_input(pipeline.preprocess, pipeline.input, given.input, io.layout)
    task = check_postprocess(pipeline)
    post = PostOptions.of(pipeline, io, None if second is None else second.io)
    pre_step = _step("pre", config.preprocess_config(PreOptions.of(pipeline, given)))
    networks = [(pipeline, Network(io, artifact))]
    if pipeline.second is not None and second is not None:
        networks.append((pipeline.second, second))
    nets = [_network_step(given, network, target) for given, network in networks]
    native = {
        name
        for (name, _), (given, network) in zip(nets, networks, strict=True)
        if target.runs_natively(given, network.io)
    }
    beside = (nets[1][0], networks[1][1].io) if len(nets) > 1 else None
    post_step = _step("post", config.postprocess_config(post, task))
    names = (pre_step[0], nets[0][0], post_step[0])
    ensemble = config.ensemble_config(pipeline, io, task, names, beside)
    public = (pipeline.model, _ensemble_files(ensemble))
    names_of_nets = tuple(name for name, _ in nets)
    return Tree(dict([pre_step, *nets, post_step]), public, networks=names_of_nets, native=frozenset(native))


def with_network_alias(tree: Tree, pipeline: Pipeline, io: NetworkIO) -> Tree:
    """Return `tree` with the bare network as the public `<model>.network`; this does not change the revision."""
    name = network_alias(pipeline.model)
    files = _ensemble_files(config.network_alias_config(name, pipeline, io, tree.networks[0]))
    return replace(tree, network=(name, files))


def _network_step(pipeline: Pipeline, network: Network, target: RenderTarget) -> tuple[str, Files]:
    options, native = NetOptions.of(pipeline, network.io), target.runs_natively(pipeline, network.io)
    message = config.network_config(options, network.io, pipeline.runtime, target, native=native)
    artifact = {f"1/{MODEL_FILE}": network.artifact}
    return _named("net", message, artifact) if native else _step("net", message, artifact)


def _step(kind: str, message: Any, extra: Files | None = None) -> tuple[str, Files]:
    code = f'from segserve_builder.backend.{kind} import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'
    files: dict[str, bytes | Path] = {
        "1/model.py": code.encode(),
        # A file blocks the folder of Python's bytecode cache: Triton would take a written cache for a modification of
        # the step, and reload it under every model that shares it.
        "1/__pycache__": b"",
    }
    return _named(kind, message, files | dict(extra or {}))


def _named(kind: str, message: Any, files: Files) -> tuple[str, Files]:
    message.name = step_name(kind, config.to_plain(message))
    return message.name, {CONFIG_FILE: config.to_pbtxt(message), **files}


def _ensemble_files(message: Any) -> Files:
    # Object stores and git drop empty folders.
    return {CONFIG_FILE: config.to_pbtxt(message), "1/.keep": b""}
