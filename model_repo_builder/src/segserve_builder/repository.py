"""From a pipeline and its artifact to a repository on disk, for those who run Triton themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_builder.errors import UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.onnx_signature import read_signature
from segserve_builder.publish import publish_tree
from segserve_builder.sources import fetch
from segserve_builder.tree import Tree, render, with_network_alias

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from segserve_builder.pipeline import Artifact
    from segserve_builder.steps import Pipeline


def build_tree(pipeline: Pipeline, artifact: Artifact, expose: Collection[str], cache: Path) -> Tree:
    """Fetch and verify the artifact, check its signature, and render the revision's files.

    Raises a `BuilderError` that says what was seen and what is allowed.
    """
    if pipeline.family not in FAMILIES:
        raise UnknownNameError("family", pipeline.family, FAMILIES)
    file = fetch(artifact.uri, artifact.sha256, cache)
    io = FAMILIES[pipeline.family].network_io(read_signature(file), pipeline)
    tree = render(pipeline, io, file)
    return with_network_alias(tree, pipeline, io) if "network" in expose else tree


def write_repository(
    pipeline: Pipeline, artifact: Artifact, expose: Collection[str], repository: Path, cache: Path
) -> Tree:
    """Publish a revision into the folder `repository`, beside the models that it holds already."""
    tree = build_tree(pipeline, artifact, expose, cache)
    publish_tree(tree, repository)
    return tree
