"""From a pipeline and its artifact to a repository on disk, for those who run Triton themselves."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from segserve_builder.errors import UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.render.publish import publish_tree
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import Network, Tree, render, with_network_alias
from segserve_builder.sources import fetch
from segserve_builder.sources.access import LOCAL, Access
from segserve_builder.sources.fetching import Progress
from segserve_builder.sources.signatures import verify
from segserve_builder.spec.model_spec import Artifact
from segserve_builder.steps.inference import with_inference
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.pipeline import Pipeline


def build_tree(
    pipeline: Pipeline,
    artifact: Artifact,
    expose: Collection[str],
    cache: Path,
    second: Artifact | None = None,
    target: RenderTarget = EMBEDDED,
    access: Access = LOCAL,
    progress: Progress | None = None,
) -> Tree:
    """Fetch and verify the artifacts, check their signatures, and render the revision's files for `target`.

    `second` is the file of the pipeline's second network, if it has one; `access` limits where they may be downloaded
    from. Raises a `BuilderError` that says what was observed and what is allowed.
    """
    network = read_network(pipeline, artifact, cache, access, progress)
    beside = None
    if pipeline.second is not None and second is not None:
        beside = read_network(pipeline.second, second, cache, access, progress)
    tree = render(pipeline, network.io, network.artifact, beside, target)
    return with_network_alias(tree, pipeline, network.io) if "network" in expose else tree


def read_network(
    pipeline: Pipeline, artifact: Artifact, cache: Path, access: Access = LOCAL, progress: Progress | None = None
) -> Network:
    """Fetch and verify one network's file and return it with its tensors; raises a `BuilderError` if that fails."""
    if pipeline.family not in FAMILIES:
        raise UnknownNameError("family", pipeline.family, FAMILIES)
    file = fetch(artifact.uri, artifact.sha256, cache, access, progress=progress)
    verify(artifact, file, access)
    io = FAMILIES[pipeline.family].network_io(read_signature(file), pipeline)
    return Network(with_inference(pipeline, io), file)


def write_repository(
    pipeline: Pipeline,
    artifact: Artifact,
    expose: Collection[str],
    repository: Path,
    cache: Path,
    second: Artifact | None = None,
    access: Access = LOCAL,
    progress: Progress | None = None,
) -> Tree:
    """Publish a revision into the folder `repository`, beside the models that it already holds."""
    tree = build_tree(pipeline, artifact, expose, cache, second, access=access, progress=progress)
    publish_tree(tree, repository)
    return tree
