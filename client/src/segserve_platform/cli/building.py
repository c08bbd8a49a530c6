"""`segserve build`, `crds`, `golden` and `runtime`: commands that need no running platform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import typer

from segserve_platform.cli.calibrating import loaded, named_model
from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.image_files import images_in
from segserve_platform.cli.installation import installation_progress
from segserve_platform.cli.options import ModelOfFile
from segserve_platform.cli.terminal import spinner
from segserve_platform.platforms.manifests import complete_models, read_files

if TYPE_CHECKING:
    from segserve_operator.api.segmentation_model import SegmentationModel

NetworkBackend: TypeAlias = Literal["python", "onnxruntime"]
"""The backend of networks that do not need a process of Python."""
Device: TypeAlias = Literal["cpu", "gpu"]
ImageScore: TypeAlias = Literal["maxSoftmax", "energy", "detail"]
"""The scores of `spec.outOfDistribution`."""


def cascade(
    file: Annotated[Path, typer.Option("--filename", "-f", help="Resource file.")],
    max_loss: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.5,
            help="Largest expected loss of quality against the heavy network alone. Default: the spec's, else 0.01.",
            show_default=False,
        ),
    ] = None,
    model: ModelOfFile = None,
) -> None:
    """Find the score above which the heavy network is used (spec.cascade.threshold).

    It is found by conformal risk control on the images of spec.golden, which both networks answer in this process: a
    further image of the same kind then loses at most --max-loss on average. Images with labels are judged by them, else
    by how far the light answer is from the heavy one. They should not be of either training set.
    """
    with needs("builder"):
        from segserve_builder.golden.risk_control import cascade_threshold

    resource = named_model(file, model, lambda each: each.spec.cascade is not None)
    spec = resource.spec
    if spec.cascade is None or spec.golden is None:
        lacks = "spec.cascade" if spec.cascade is None else "spec.golden"
        raise CommandError(f"{resource.metadata.name} has no {lacks}; the threshold is found for both")
    allowed = max_loss or spec.cascade.max_loss or 0.01
    with spinner(f"running both networks of {resource.metadata.name} on its golden images"):
        scores, losses = measured(resource)
    try:
        found = cascade_threshold(scores, losses, allowed)
    except ValueError as error:
        raise CommandError(f"{spec.golden.uri}: {error}") from error
    typer.echo(
        f"{resource.metadata.name}: {found.images} images, scores from {min(scores):.4g} to {max(scores):.4g}; "
        f"{found.heavy_share:.0%} go to the heavy network, and lose {found.loss:.4g} on average (expected: at most "
        f"{found.loss_bound:.4g})"
    )
    typer.echo(f"set in spec.cascade: threshold: {found.threshold!r}, maxLoss: {allowed:g}")


def measured(resource: SegmentationModel) -> tuple[list[float], list[float]]:
    """Return the score of each golden image's light answer, and by how much it is worse than the heavy one."""
    from segserve_builder.errors import BuilderError
    from segserve_builder.scoring.cascade_loss import cascade_losses
    from segserve_builder.scoring.regions import read_golden_images
    from segserve_builder.sources import fetch, fetch_folder
    from segserve_builder.stages.base import RequestOptions
    from segserve_builder.steps.in_process import InProcessModel
    from segserve_operator.adapters.local.access import local_access
    from segserve_operator.adapters.local.files import cache_folder

    pipeline = resource.spec.pipeline(resource.metadata.name)
    rule, golden, first = pipeline.cascade, resource.spec.golden, resource.assigned.light_artifact
    assert rule is not None
    assert golden is not None
    assert pipeline.light is not None
    assert first is not None
    heavy = loaded(resource, pipeline.model_copy(update={"cascade": None}))
    cache, access = cache_folder(), local_access()
    try:
        light = InProcessModel(pipeline.light, fetch(first.uri, first.sha256, cache, access))
        folder = fetch_folder(golden.uri, golden.sha256, cache, access)
        images = read_golden_images(folder, golden.sha256, pipeline)
        options = RequestOptions(encoding="rle" if "encoding" in images.parameters else None)
        scores: list[float] = []

        def light_answer(image: bytes) -> Any:
            score, outputs = light.scored(image, options, rule)
            scores.append(score)
            return outputs

        return scores, cascade_losses(images, lambda image: heavy.answer(image, options), light_answer)
    except BuilderError as error:
        raise CommandError(str(error)) from error


def record(
    images: Annotated[Path, typer.Argument(metavar="IMAGE_FOLDER", help="Folder of images; the first three are used.")],
    file: Annotated[Path, typer.Option("--filename", "-f", help="Resource file; its digest is updated.")],
    model: ModelOfFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the golden set, if the resource has none.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Record a model's answers as its golden set; the network runs in this process.

    Check the overlays in preview/ next to the set first: the recorded answers are required from every later revision.
    """
    files = images_in(images)
    with needs("builder"):
        from segserve_platform.cli.init.writing import golden_answers, write_golden, write_previews

        resource = named_model(file, model)
        folder = _folder(resource, output)
        _clear(folder)
        pipeline = resource.spec.pipeline(resource.metadata.name)
        with spinner(f"running {resource.metadata.name}'s network on images of {images}"):
            answers = golden_answers(loaded(resource, pipeline), files)
            digest = write_golden(answers, folder, prompted=pipeline.decoder is not None)
            results = write_previews(answers, resource, folder.parent / "preview")
    for image, result in zip(files, results, strict=False):
        at_limit = " (as many objects as the limit, maxDetections of output or a stage)" * result.at_limit
        typer.echo(f"{image.name}: {result!r}{at_limit}")
    typer.echo(_pinned(file, resource, folder, digest))


def _folder(resource: SegmentationModel, output: Path | None) -> Path:
    from urllib.request import url2pathname

    if output is not None:
        return output
    if resource.spec.golden is None:
        raise CommandError(f"{resource.metadata.name} has no spec.golden yet: set the output folder with -o")
    parts = urlsplit(resource.spec.golden.uri)
    if parts.scheme != "file":
        raise CommandError(
            f"spec.golden is at {resource.spec.golden.uri}, which is not a local folder: set one with -o"
        )
    return Path(url2pathname(parts.path))


def _clear(folder: Path) -> None:
    """Delete only the images of the previous golden set; a set with labels or several prompts is refused."""
    from segserve_builder.golden.judging import GOLDEN_FILE, load

    if not (folder / GOLDEN_FILE).exists():
        return
    before = load(folder)
    if any(case.labels is not None or case.label_map is not None for case in before.cases):
        raise CommandError(f"{folder} has labels, which would be lost; set another folder with -o")
    if any(case.prompt is not None and (case.prompt.boxes or len(case.prompt.points) > 1) for case in before.cases):
        raise CommandError(f"{folder} has prompts beyond a click, which would be lost; set another folder with -o")
    for case in before.cases:
        (folder / case.image).unlink()


def _pinned(file: Path, resource: SegmentationModel, folder: Path, digest: str) -> str:
    """Write the digest into the file if it names this set, and return a message with the outcome."""
    golden = resource.spec.golden
    if golden is None or urlsplit(golden.uri).path != folder.resolve().as_uri().removeprefix("file://"):
        return f"sha256 {digest}: add it to spec.golden, with the folder as uri"
    text = file.read_text()
    if golden.sha256 == digest:
        return f"{file}: unchanged"
    # The digest is in the file at most once; a textual replacement keeps the comments.
    file.write_text(text.replace(golden.sha256, digest, 1))
    return f"{file}: updated to sha256 {digest}"


golden = typer.Typer(help="Manage golden sets: images with their expected answers.", no_args_is_help=True)
runtime = typer.Typer(help="Manage the environment of Triton's Python steps.", no_args_is_help=True)


def build(
    files: Annotated[list[Path], typer.Option("--filename", "-f", help="Resource file; may be repeated.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder, created if missing.")
    ],
    triton: Annotated[
        str, typer.Option(metavar="YY.MM", help="Release of the Triton that serves it; a later one does as well.")
    ] = "24.10",
    backend: Annotated[
        NetworkBackend,
        typer.Option(help="What runs networks on a GPU and by OpenVINO: the Python step, or Triton's own backend."),
    ] = "python",
    device: Annotated[
        Device, typer.Option(help="Device that the server has for networks without runtime.device.")
    ] = "cpu",
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processors of the server, with which one step runs all of a model on a CPU. Default: three steps.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="TRITONSERVER",
            help="Program that loads what was written and is asked for the golden images; it ends then.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the Triton model repository of models, for running Triton without segserve."""
    with needs("builder"):
        from segserve_builder.render.repository import build_tree, publish_tree, sweep
        from segserve_builder.render.target import RenderTarget
        from segserve_operator.adapters.local.access import local_access
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.api.triton_pool import TritonPool

    target = replace(RenderTarget.named(triton, backend, cpus), has_gpu=device == "gpu")
    read = read_files(files)
    pools = [written.resource for written in read if isinstance(written.resource, TritonPool)]
    access = local_access(pools[0].spec.artifacts if pools else None)
    models = complete_models(read)
    if not models:
        found = ", ".join(written.resource.kind for written in read)
        raise CommandError(f"no SegmentationModel in {', '.join(map(str, files))}; found: {found or 'nothing'}")
    assignments = [model.assigned for model in models.values()]
    for assigned in assignments:
        networks, cache = assigned.networks, cache_folder()
        tree = build_tree(networks, cache, access, expose=assigned.expose, metrics=assigned.metrics, target=target)
        publish_tree(tree, output)
        typer.echo(f"{assigned.revision} written to {output}")
    sweep(output)
    if check is not None:
        with needs("local"):
            from segserve_platform.cli.own_triton import check as checked

        for line in checked(check, output, assignments, target, access):
            typer.echo(line)


def crds(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Output folder. Default: print to standard output."),
    ] = None,
) -> None:
    """Print the custom resource definitions: `segserve crds | kubectl apply --server-side -f -`."""
    from segserve_operator.api.crd import crd_files

    for name, text in crd_files().items():
        if output is None:
            typer.echo(f"---\n{text}", nl=False)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text)


@golden.command("digest")
def golden_digest(folder: Annotated[Path, typer.Argument(help="Folder with golden.json.")]) -> None:
    """Print the sha256 of a golden set for `spec.golden.sha256`."""
    with needs("builder"):
        from segserve_builder.golden.judging import GOLDEN_FILE
        from segserve_builder.sources import folder_digest

    if not (folder / GOLDEN_FILE).is_file():
        raise CommandError(f"{folder} is not a golden set: it has no {GOLDEN_FILE}; `segserve golden record` makes one")
    typer.echo(folder_digest(folder))


golden.command("record")(record)
golden.command("cascade")(cascade)


@golden.command("threshold")
def golden_threshold(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGE_FOLDER", help="Folder of images as callers send them, such as samples.")
    ],
    file: Annotated[Path, typer.Option("--filename", "-f", help="Resource file.")],
    score: Annotated[ImageScore, typer.Option(help="Score to find the threshold of.")] = "maxSoftmax",
    false_positive_rate: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Maximum share of usual images to flag.")
    ] = 0.01,
    model: ModelOfFile = None,
) -> None:
    """Find the threshold of spec.outOfDistribution: the score that few usual images exceed.

    The threshold is the conformal quantile: a further image of the same kind is flagged with at most the given rate, on
    average over folders of this size. Do not use training images: networks are overconfident on them. The network runs
    in this process.
    """
    found = images_in(images)
    with needs("builder"):
        import yaml

        from segserve_builder.errors import BadImageError
        from segserve_builder.spec.model_spec import OutOfDistributionPolicy
        from segserve_builder.steps.out_of_distribution import conformal_threshold

        resource = named_model(file, model)
        policy = OutOfDistributionPolicy(score=score, threshold=0.0)
        pipeline = resource.spec.pipeline(resource.metadata.name)
        with spinner(f"running {resource.metadata.name}'s network on images of {images}"):
            network = loaded(resource, pipeline.model_copy(update={"out_of_distribution": policy}))
            values: list[float | None] = []
            for path in found:
                try:
                    values.append(network.score(path.read_bytes()))
                except BadImageError as error:
                    raise CommandError(f"{path}: {error}") from error
            known = [each for each in values if each is not None]
    try:
        threshold = conformal_threshold(known, false_positive_rate)
    except ValueError as error:
        raise CommandError(f"{images}: {error}, of {len(found)} images") from error
    typer.echo(f"{resource.metadata.name}: {len(known)} images with a score, from {min(known):.4g} to {max(known):.4g}")
    # Not as JSON, whose 1e-07 is a string in YAML 1.1.
    judged = {"score": score, "threshold": threshold}
    text = yaml.safe_dump(judged, default_flow_style=True, sort_keys=False, width=float("inf"))
    typer.echo(f"add to spec: outOfDistribution: {text.strip()}")


@runtime.command("install")
def runtime_install() -> None:
    """Install the runtime environment now instead of at the first `segserve up`."""
    with needs("local"):
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.adapters.local.runtime import ensure_runtime

    with installation_progress() as progress:
        installed = ensure_runtime(cache_folder(), progress)
    typer.echo(installed.root)
