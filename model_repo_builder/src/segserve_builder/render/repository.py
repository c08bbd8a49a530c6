"""Triton repositories on disk: a pipeline and its artifact are rendered, and published atomically.

Everything is staged beside the repository (`.<name>-staging`), never in it, since Triton takes each of its
folders for a model, and enters it by one rename. Each repository has one writing process.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from segserve_builder.errors import StepConflictError, UnknownNameError, writing
from segserve_builder.families import FAMILIES
from segserve_builder.families.network_inputs import image_tensor
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import (
    CONFIG_FILE,
    Files,
    Network,
    PromptDecoderFile,
    Sharing,
    Tree,
    render,
    with_network_alias,
)
from segserve_builder.sources import fetch
from segserve_builder.sources.access import LOCAL, Access
from segserve_builder.sources.fetching import Progress
from segserve_builder.sources.signatures import verify
from segserve_builder.spec.model_spec import COUNTED, Artifact, ModelMetrics
from segserve_builder.steps.inference import decoder_io, network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.pipeline import NetworkArtifact, NetworkRole, Pipeline
from segserve_common.files import sync_folder


def build_tree(
    networks: Mapping[NetworkRole, NetworkArtifact],
    cache: Path,
    access: Access = LOCAL,
    progress: Progress | None = None,
    *,
    expose: Collection[str] = (),
    metrics: ModelMetrics = COUNTED,
    target: RenderTarget = EMBEDDED,
    shared: bool = False,
) -> Tree:
    """Fetch and verify the artifacts, check their signatures, and render the revision's files for `target`.

    `access` limits where the artifacts may be downloaded from. With `shared` its steps are also other models' steps.
    Raises a `BuilderError` that says what was observed and what is allowed.
    """
    files = {role: _fetched(network.artifact, cache, access, progress) for role, network in networks.items()}
    read = {role: _read(network.pipeline, files[role]) for role, network in networks.items() if role != "decoder"}
    pipeline, first = networks["first"].pipeline, read["first"]
    decoder = None
    if "decoder" in files:
        decoder = PromptDecoderFile(decoder_io(pipeline, read_signature(files["decoder"]), first.io), files["decoder"])
    # The public network's ensemble has nothing that could take what selects a member.
    apart = "network" in expose
    sharing = Sharing(post=shared, networks=shared and not apart)
    tree = render(
        pipeline, first, read.get("second"), target, metrics, sharing, read.get("light"), apart=apart, decoder=decoder
    )
    return with_network_alias(tree, pipeline, first.io) if apart else tree


def _fetched(artifact: Artifact, cache: Path, access: Access, progress: Progress | None) -> Path:
    file = fetch(artifact.uri, artifact.sha256, cache, access, progress=progress)
    verify(artifact, file, access)
    return file


def _read(pipeline: Pipeline, file: Path) -> Network:
    if pipeline.family not in FAMILIES:
        raise UnknownNameError("family", pipeline.family, FAMILIES)
    signature = read_signature(file)
    io = network_io(pipeline, signature)
    return Network(io, file, single=len(image_tensor(signature).shape) < len(io.input.shape))


def publish_tree(tree: Tree, repository: Path) -> None:
    """Publish all of a revision: its steps, then the public names, which name steps that are there by then.

    Raises `PublishError`, and `StepConflictError` where a step's folder holds something else. Whatever
    fails, what the repository held before still is complete.
    """
    for name, files in ({**tree.members, **tree.steps}).items():
        publish(files, repository / name)
    for name, files in tree.public.items():
        replace(files, repository / name)


def publish(files: Files, target: Path) -> None:
    """Publish an immutable step as the folder `target`; does nothing where that holds the same already.

    Artifacts are copied, not linked: the links of one file share its ctime, which Triton takes for a
    modification. Present artifacts are compared only by size, as the step's name is the digest of its
    content. Raises `PublishError`, and `StepConflictError` where `target` holds something else.
    """
    if target.is_dir():
        with writing(target):
            _refuse_other_content(files, target)
        return
    with writing(target), _staged(target) as staging:
        folder = staging / target.name
        _write_files(files, folder)
        if not _enter(folder, target):
            _refuse_other_content(files, target)
        sync_folder(target.parent)


def replace(files: Files, target: Path) -> None:
    """Publish a model under a mutable name: where the folder is there, only its config is renamed over."""
    if not target.is_dir():
        publish(files, target)
        return
    with writing(target), _staged(target) as staging:
        if _same(files[CONFIG_FILE], target / CONFIG_FILE):
            return
        _write_files(files, staging)
        (staging / CONFIG_FILE).replace(target / CONFIG_FILE)
        sync_folder(target)


def remove(target: Path) -> None:
    """Take the folder `target` out of its repository by one rename, then delete it; a missing one is fine."""
    if not target.exists():
        return
    with writing(target), _staged(target) as staging:
        target.rename(staging / target.name)
        sync_folder(target.parent)


def sweep(repository: Path) -> None:
    """Delete what a killed writer left in staging; only the repository's writing process may, at its start."""
    shutil.rmtree(_staging_folder(repository), ignore_errors=True)


def _staging_folder(repository: Path) -> Path:
    return repository.parent / f".{repository.name}-staging"


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    repository = target.parent
    repository.mkdir(parents=True, exist_ok=True)
    staging = _staging_folder(repository)
    staging.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _enter(folder: Path, target: Path) -> bool:
    try:
        folder.rename(target)
    except OSError:
        # Another thread, with a model that shares this step, may have been first.
        if not target.is_dir():
            raise
        return False
    return True


def _write_files(files: Files, folder: Path) -> None:
    for relative, content in sorted(files.items()):
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for parent in {(folder / relative).parent for relative in files} | {folder}:
        sync_folder(parent)


def _refuse_other_content(files: Files, target: Path) -> None:
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    other = sorted(present ^ files.keys())
    other += sorted(name for name in present & files.keys() if not _same(files[name], target / name))
    if other:
        raise StepConflictError(f"{target} is another step's content: {', '.join(other)} differ; remove the folder")


def _same(content: bytes | Path, path: Path) -> bool:
    if not path.is_file():
        return False
    if isinstance(content, Path):
        return content.stat().st_size == path.stat().st_size
    return path.read_bytes() == content
