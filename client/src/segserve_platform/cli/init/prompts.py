"""The resource of a promptable network, whose encoder and decoder are two files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from segserve.rendering.display import one_line
from segserve_builder.errors import BuilderError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, described
from segserve_builder.families.promptable import PROMPTABLE, PROMPTABLE_SAM2
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.preprocess_rules import network_size
from segserve_common.files import file_sha256
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.network import Progress, Remark, image_input, read_network
from segserve_platform.cli.init.preparation import normalise_of
from segserve_platform.cli.init.writing import commented, golden_answers, manifest_of, write_golden, write_previews
from segserve_platform.cli.schema import modeline

FREE_SIDE: Final = 1024
AS_PILLOW: Final = {"antialias": True, "rounding": "eachPass"}
GOLDEN: Final = Remark(
    ("spec", "golden"), "the golden set holds the answers to a click in the middle: check preview/", sure=False
)


def write_promptable(
    encoder: Path,
    decoder: Path,
    images: Sequence[Path],
    name: str,
    family: str | None,
    resource: Path,
    progress: Progress,
) -> list[str]:
    """Write the resource, and beside it both files, the golden set and previews; return lines for the user.

    Raises `CommandError` for files that no promptable family fits, and if they do not answer; nothing is written then.
    """
    if encoder.name == decoder.name:
        raise CommandError(f"both files are named {encoder.name}, and are copied into one folder: rename one")
    try:
        network = read_network(encoder)
        spec = _spec(encoder, decoder, family or PROMPTABLE.name)
        io = network_io(_pipeline(name, spec), network.signature)
        # SAM 2's embeddings are of three resolutions; SAM's has one, and perhaps that of positions.
        if family is None and len(io.outputs) > 2:
            spec["family"] = PROMPTABLE_SAM2.name
        normalise = normalise_of(FAMILIES[spec["family"]], network, image_input(network.image))
        spec["preprocess"] = [_resize(io, spec["family"]), *(normalise.steps or ())]
        runner = InProcessModel(_pipeline(name, spec), encoder, decoder=decoder)
        answers = golden_answers(runner, images, progress)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    except BuilderError as error:
        raise CommandError(f"{encoder.name} and {decoder.name} are not served together: {error}") from error
    folder = resource.parent
    for old in (folder / "golden", folder / "preview"):
        shutil.rmtree(old, ignore_errors=True)  # they exist with --force only
    folder.mkdir(parents=True, exist_ok=True)
    for file in (encoder, decoder):
        if not (folder / file.name).exists() or not (folder / file.name).samefile(file):
            shutil.copyfile(file, folder / file.name)
    spec["golden"] = {"uri": "golden", "sha256": write_golden(answers, folder / "golden", prompted=True)}
    manifest = manifest_of(name, spec)
    results = write_previews(answers, SegmentationModel.model_validate(manifest), folder / "preview")
    head = [f"Written by `segserve init` for {encoder.name} and {decoder.name}. Check the lines marked CHECK."]
    remarks = (normalise.remark, GOLDEN)
    resource.write_text(f"{modeline(folder)}\n{commented(manifest, remarks, head)}")
    return [
        *(f"embedding  {described(tensor)}" for tensor in io.outputs),
        f"family     {spec['family']}",
        f"written    {resource}, with both files, golden/ and preview/",
        *(f"found      {one_line(result).partition(': ')[2].rstrip('>')}" for result in results),
        *(f"check      {remark.text}" for remark in remarks if not remark.sure),
    ]


def _spec(encoder: Path, decoder: Path, family: str) -> dict[str, Any]:
    if family not in (allowed := (PROMPTABLE.name, PROMPTABLE_SAM2.name)):
        raise CommandError(f"--family is {family!r}; with --decoder allowed are {', '.join(allowed)}")
    files = [{"uri": file.name, "sha256": file_sha256(file)} for file in (encoder, decoder)]
    return {
        "artifact": files[0],
        "family": family,
        "decoder": {"artifact": files[1]},
        "classes": [{"id": 0, "name": "object"}],
    }


def _pipeline(name: str, spec: dict[str, Any]) -> Pipeline:
    return SegmentationModel.model_validate(manifest_of(name, spec)).spec.pipeline(name)


def _resize(io: NetworkIO, family: str) -> dict[str, Any]:
    """Return how the library resizes images to a network of this input."""
    height, width, _ = network_size(io.input, io.layout)
    side = height or FREE_SIDE
    if family == PROMPTABLE_SAM2.name:
        resize: dict[str, Any] = {"mode": "stretch", "height": side, "width": width or side}
    else:
        resize = {"mode": "shortSide", "size": side, "maxSize": side, "multipleOf": side, "padding": "zeros"}
    return {"resize": {**resize, **AS_PILLOW}}
