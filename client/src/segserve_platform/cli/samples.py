"""`segserve samples`: the samples that a model's gateways kept, for labelling tools and back."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from segserve_platform.cli.errors import CommandError, needs, plain
from segserve_platform.cli.options import (
    GatewayUrl,
    ModelName,
    PlatformOptions,
    ReportOutput,
    model_client,
    seconds,
    selected_platform,
    with_platform_options,
)
from segserve_platform.platforms.port import MODEL

if TYPE_CHECKING:
    from segserve.client import Client
    from segserve_builder.capture.store import ManifestRow, SampleStore

samples = typer.Typer(help="Look at samples of requests, and bring labels back (spec.capture).", no_args_is_help=True)
_IMAGES: Final = "images"


Sink = Annotated[str | None, typer.Option(help="URI of the samples. Default: spec.capture.sink of the model.")]
Most = Annotated[int, typer.Option("--limit", min=1, help="Maximum number of samples, the newest.")]
NewerThan = Annotated[str | None, typer.Option(help="Only samples newer than this, such as 24h.")]
Reason = Annotated[str | None, typer.Option(help="Only samples that were kept for this reason.")]


@dataclass(frozen=True, slots=True)
class _Samples:
    """A model's samples."""

    model: str
    store: SampleStore

    def rows(self, most: int, reason: str | None, newer_than: str | None) -> list[ManifestRow]:
        """Return the samples with this reason, the newest first."""
        since_s = 0.0 if newer_than is None else time.time() - seconds(newer_than)
        rows = self.store.rows(self.model, since_s=since_s, newest=most if reason is None else None)
        return [row for row in rows if reason is None or reason in row.reasons][: -most - 1 : -1]

    def row(self, name: str) -> ManifestRow:
        """Return the sample with this key or request id."""
        row = self.store.row(self.model, name)
        if row is None:
            raise CommandError(f"{self.model} has no sample {name!r}; `segserve samples list {self.model}` lists them")
        return row


def _opened(platform_options: PlatformOptions, model: str, sink: str | None) -> _Samples:
    """Open a model's samples; with a `sink` the model may no longer exist."""
    with needs("local"):
        from segserve_builder.capture.store import SampleStore
        from segserve_operator.adapters.local.access import local_access
    if sink is None:
        resource = selected_platform(platform_options).find(MODEL, model)
        if resource is None:
            raise CommandError(f"there is no model {model!r}; --sink names the samples of one that was deleted")
        sink = (resource["spec"].get("capture") or {}).get("sink")
    if sink is None:
        raise CommandError(
            f"{model} keeps no samples: it has no spec.capture; name the sink of earlier samples with --sink"
        )
    return _Samples(model, SampleStore(sink, local_access()))


@samples.command("list")
@with_platform_options
def list_samples(
    platform_options: PlatformOptions,
    model: ModelName,
    limit: Most = 50,
    reason: Reason = None,
    newer_than: NewerThan = None,
    sink: Sink = None,
    output: ReportOutput = "text",
) -> None:
    """List a model's samples, the newest first."""
    rows = _opened(platform_options, model, sink).rows(limit, reason, newer_than)
    if output == "json":
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows]))
        return
    if not rows:
        typer.echo(f"{model} has no samples yet", err=True)
        return
    typer.echo(f"{'KEY':<31}{'CAPTURED':<21}{'REASONS':<20}{'UNCERTAIN':>9}{'DISAGREES':>11}  SLICE")
    for row in rows:
        when = datetime.fromtimestamp(row.captured_at_s).strftime("%Y-%m-%d %H:%M:%S")
        reasons = ",".join(row.reasons)
        numbers = f"{_shown(row.uncertainty):>9}{_shown(row.disagreement):>11}"
        typer.echo(plain(f"{row.key:<31}{when:<21}{reasons:<20}{numbers}  {row.slice or '-'}"))


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


@samples.command("show")
@with_platform_options
def show_sample(
    platform_options: PlatformOptions,
    model: ModelName,
    sample: Annotated[str, typer.Argument(help="Key of a sample, or the id of its request.")],
    image: Annotated[Path | None, typer.Option(help="File to write the image to.")] = None,
    sink: Sink = None,
) -> None:
    """Show what is known of one sample, and write its image."""
    opened = _opened(platform_options, model, sink)
    row = opened.row(sample)
    for name, value in row.model_dump(mode="json", exclude_none=True).items():
        typer.echo(plain(f"{name:<20} {value}"))
    if image is not None:
        image.write_bytes(opened.store.image(row))
        typer.echo(f"{'written':<20} {image}")


@samples.command("export")
@with_platform_options
def export_samples(
    platform_options: PlatformOptions,
    model: ModelName,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write to.")],
    to: Annotated[
        Literal["coco", "label-studio", "cvat"], typer.Option("--to", help="Format of the annotations.")
    ] = "coco",
    limit: Most = 100,
    reason: Reason = None,
    newer_than: NewerThan = None,
    sink: Sink = None,
) -> None:
    """Write images, and the model's answers as annotations to start from.

    COCO is read by CVAT, FiftyOne and Label Studio's converter. Corrected, a COCO file goes to `label-back`.
    """
    from segserve_builder.capture.labelling import data_set, file_name

    opened = _opened(platform_options, model, sink)
    rows = opened.rows(limit, reason, newer_than)
    if not rows:
        raise CommandError(f"{model} has no samples to export")
    (out / _IMAGES).mkdir(parents=True, exist_ok=True)
    documents = [(row, opened.store.coco(row)) for row in rows]
    for row in rows:
        (out / _IMAGES / file_name(row)).write_bytes(opened.store.image(row))
    whole = data_set(documents)
    if to == "coco":
        written = out / "annotations.json"
        written.write_text(json.dumps(whole))
    else:
        from segserve.exports.samples import SampleResult, cvat_document, label_studio_tasks

        parts = [SampleResult(row.revision, data_set([(row, document)])) for row, document in documents]
        is_cvat = to == "cvat"
        written = out / ("annotations.xml" if is_cvat else "tasks.json")
        written.write_text(cvat_document(parts) if is_cvat else json.dumps(label_studio_tasks(parts)))
    typer.echo(f"{len(rows)} samples: {written}, images in {out / _IMAGES}")


@samples.command("label-back")
@with_platform_options
def label_back(
    platform_options: PlatformOptions,
    model: ModelName,
    labels: Annotated[Path, typer.Argument(help="Corrected COCO file, as the labelling tool exports it.")],
    golden: Annotated[Path, typer.Option("--golden", help="Folder of the golden set; one that is there grows.")],
    sink: Sink = None,
    url: GatewayUrl = None,
) -> None:
    """Make corrected samples a golden set: labels by people, beside the answers of the revision that serves.

    Rollouts measure candidates by it (gate goldenQuality) once spec.golden names it.
    """
    from segserve_builder.capture.labelling import corrected, file_name
    from segserve_builder.golden.judging import GOLDEN_FILE, Case, GoldenSet, load
    from segserve_builder.sources import folder_digest

    opened = _opened(platform_options, model, sink)
    rows = {file_name(row): row for row in opened.store.rows(model)}
    resource = selected_platform(platform_options).model(model)
    classes = {each["name"]: each["id"] for each in resource["spec"]["classes"]}
    cases = {case.image: case for case in load(golden).cases} if (golden / GOLDEN_FILE).is_file() else {}
    images = {}
    with model_client(platform_options, model, url) as client:
        joins = "AREAS" in client.model_info(model).outputs
        for item in corrected(labels.read_bytes(), classes, joins=joins):
            if item.file_name not in rows:
                raise CommandError(f"{labels} has an image {item.file_name!r}, of which {model} has no sample")
            row = rows[item.file_name]
            content = images[item.file_name] = opened.store.image(row)
            cases[item.file_name] = Case.model_validate(
                {
                    "image": item.file_name,
                    "expected": _answer_of(client, model, content)[0],
                    "labels": item.labels,
                    "slice": row.slice or None,
                }
            )
    # Only now: labels that cannot be used, or a server that does not answer, leave the folder as it was.
    golden.mkdir(parents=True, exist_ok=True)
    for name, content in images.items():
        (golden / name).write_bytes(content)
    document = GoldenSet(cases=tuple(cases.values())).model_dump_json(by_alias=True, exclude_none=True, indent=1)
    (golden / GOLDEN_FILE).write_text(document)
    typer.echo(f"{golden}: {len(cases)} images; sha256 {folder_digest(golden)} for spec.golden")


@samples.command("delete")
@with_platform_options
def delete_samples(
    platform_options: PlatformOptions,
    model: ModelName,
    request_id: Annotated[str | None, typer.Option(help="Delete the sample of this request.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Delete samples older than this, such as 720h.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all samples of the model.")] = False,
    sink: Sink = None,
) -> None:
    """Delete samples, with all that is kept of each. Gateways delete those older than spec.capture.retention."""
    if sum((request_id is not None, older_than is not None, everything)) != 1:
        raise CommandError("say what to delete: one of --request-id, --older-than and --all")
    opened = _opened(platform_options, model, sink)
    if request_id is not None:
        gone = opened.store.delete(model, request_id=request_id)
    else:
        age_s = 0.0 if older_than is None else seconds(older_than)
        gone = opened.store.delete(model, before_s=time.time() - age_s)
    typer.echo(f"{gone} objects deleted")
    if not gone:
        sys.exit(1)


def _answer_of(client: Client, model: str, image: bytes) -> tuple[dict[str, Any], str]:
    """Return the answer to an image as a golden set expects it, and the revision that gave it."""
    from segserve.results.result import SemanticResult

    result = client.segment(image, model=model)
    found = list(result.annotations())
    outputs: dict[str, Any] = {"SIZE": result.size, "CLASSES": [each.class_id for each in found]}
    if all(each.mask is not None for each in found):
        outputs["MASKS"] = [each.mask.rle["counts"].decode("ascii") for each in found if each.mask is not None]
    if not isinstance(result, SemanticResult):
        outputs["SCORES"] = [each.score or 0.0 for each in found]
        outputs["BOXES"] = [each.box for each in found]
    return outputs, result.revision
