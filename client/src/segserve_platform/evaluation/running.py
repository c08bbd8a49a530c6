"""`segserve.evaluate`: sends labelled images to a model through its gateway, and scores the answers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve.calls.many import Failure
from segserve.client import Client
from segserve.errors import HOPELESS, DatasetError, RevisionChangedError
from segserve.exports.samples import SampleResult
from segserve.rendering.comparison import draw_label_comparison
from segserve.results.values import SegmentClass
from segserve_common.errors import BadRequestError, SegserveError
from segserve_platform.evaluation import IN_FLIGHT, RESAMPLES, WORST
from segserve_platform.evaluation.datasets import (
    Dataset,
    LabelledImage,
    few,
    matched_classes,
    read_dataset,
    read_json,
    read_text,
    repeated_labels,
    spelling,
)
from segserve_platform.evaluation.estimates import mean_estimate
from segserve_platform.evaluation.regions import check_size, document_of, limits_of, objects_of_maps, without_gaps
from segserve_platform.evaluation.report import EvaluationReport, ImageScore, SliceScore
from segserve_platform.evaluation.scores import MAIN, DatasetScores, Task, measure_of, read_labels, score, score_slices

if TYPE_CHECKING:
    from PIL import Image

    from segserve.results.values import ModelInfo

EvaluationProgress: TypeAlias = Callable[[Literal["images", "samples"], int, int], object]
"""Is called with the numbers of images answered, or of samples scored, and of all."""

_TASKS: Final[dict[str, Task]] = {
    "KEYPOINTS": "keypoints",
    "SEGMENTS": "panoptic",
    "AREAS": "semantic",
    "MASKS": "instance",
    "BOXES": "detection",
}
ANSWERS: Final = "answers.jsonl"
BY_FOLDER: Final = "folder"
MAX_SLICES: Final = 100
LOW: Final = 0.5
"""The best image's score below which labels may be those of other classes."""


def slices_of(dataset: Dataset, by: str | os.PathLike[str] | Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the places of the images of each slice, by its name.

    `by` is `folder`, a CSV file with the columns image and slice, a JSON file with the slice of each image, or the same
    as a mapping. Images are named as in the data set, or by their files. An image without a slice is in none. Raises
    `DatasetError` for a file that is neither, for names of no image, and for one slice or more than `MAX_SLICES`.
    """
    if by == BY_FOLDER:
        what = "the folders of images"
        parents = [image.path.resolve().parent for image in dataset.images]
        root = os.path.commonpath(parents)
        named = [
            PurePath(root).name if str(parent) == root else parent.relative_to(root).as_posix() for parent in parents
        ]
    else:
        what = "the mapping of slices" if isinstance(by, Mapping) else repr(os.fspath(by))
        own = by if isinstance(by, Mapping) else _read(Path(by))
        alike = {spelling(name): text for name, text in own.items()}
        both = [(image.name, image.path.name) for image in dataset.images]
        named = [own.get(a) or own.get(b) or alike.get(spelling(a)) or alike.get(spelling(b)) or "" for a, b in both]
        if not any(named):
            raise DatasetError(
                f"{what} has no image of the data set: it has {few(map(repr, own)) or 'none'}; the data set "
                f"{few(repr(image.name) for image in dataset.images)}"
            )
    places = defaultdict[str, list[int]](list)
    for place, name in enumerate(named):
        if name:
            places[name].append(place)
    if not 2 <= len(places) <= MAX_SLICES:
        raise DatasetError(f"{what} must make 2 to {MAX_SLICES} slices, got {len(places)}: {few(places)}")
    return {name: tuple(own) for name, own in sorted(places.items())}


def _read(path: Path) -> dict[str, str]:
    form = path.suffix.lower()
    if form not in (".csv", ".json"):
        raise DatasetError(f"slices must be {BY_FOLDER!r}, or a CSV or JSON file that names them, got {str(path)!r}")
    try:
        if form == ".json":
            document = read_json(path)
            if not isinstance(document, dict):
                raise DatasetError(
                    f"{str(path)!r} must have the slice of each image in an object, got {document!r:.80}"
                )
            return _checked(path, list(document.items()))
        text = re.sub(r"\Asep=.\r?\n", "", read_text(path))  # Excel's own line
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if not {"image", "slice"} <= {*columns}:
            raise DatasetError(f"{str(path)!r} must have the columns image and slice, got {few(columns, 20)}")
        return _checked(path, [(row["image"], row["slice"]) for row in reader])
    except csv.Error as error:
        raise DatasetError(f"slices {str(path)!r} cannot be read: {error}") from error


def _checked(path: Path, rows: list[tuple[Any, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for image, name in rows:
        if not isinstance(name, str | int | float | None):
            raise DatasetError(f"{str(path)!r}: the slice of {image!r} must be a text, got {name!r:.80}")
        text = "" if name is None else str(name).strip()
        if found.setdefault(str(image).strip(), text) != text:
            raise DatasetError(f"{str(path)!r} has the slices {found[str(image).strip()]!r} and {text!r} of {image!r}")
    return found


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Answers to images, one a line: of `model`, with these options.

    Lines of other models, options and revisions stay and are skipped, as is one that was cut short.
    """

    path: Path
    model: str
    options: Mapping[str, Any]

    def read(self, revision: str | None) -> dict[str, SampleResult]:
        """Return this revision's answers by the sha256 of their images."""
        if not self.path.is_file():
            return {}
        wanted = {"model": self.model, "options": dict(self.options), "revision": revision}
        return {
            line["sha256"]: SampleResult(line["revision"], line["answer"])
            for line in self._lines()
            if {key: line.get(key) for key in wanted} == wanted
        }

    def append(self, sha256: str, answer: SampleResult) -> None:
        """Add an answer."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"model": self.model, "options": dict(self.options), "revision": answer.revision, "sha256": sha256}
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                # A line that was cut short ends here, so that it costs no more than itself.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line | {"answer": answer.document}).encode() + b"\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and {"sha256", "answer"} <= line.keys():
                    yield line


def evaluate(
    model: str,
    data: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    in_flight: int = IN_FLIGHT,
    resamples: int = RESAMPLES,
    worst: int = WORST,
    by: str | os.PathLike[str] | Mapping[str, str] | None = None,
    labels_from: int = 0,
    client: Client | None = None,
    progress: EvaluationProgress | None = None,
) -> EvaluationReport:
    """Send all images of a data set to a model, and score its answers against the labels.

    `data` is a COCO, COCO panoptic, Label Studio or LabelMe JSON file, or a folder: with one such file, or one of
    LabelMe for each image, with `data.yaml` (YOLO), or with `images` and `labels` (label maps as PNG or TIFF). `images`
    is the folder of a JSON file's images, which are otherwise looked for beside it. `classes` names those that count,
    by default all of the data set. `labels_from` is the value of the first class in label maps, 1 where 0 is no class.
    `score_threshold` and `max_detections` are as in `Client.segment`; AP needs a low threshold. `resamples` samples of
    the images, drawn with a fixed seed, give the intervals.

    `by` divides the images into slices, each of which has its mean IoU, AP or PQ: by `folder`, or by a CSV file with
    the columns image and slice, a JSON file with the slice of each image, or the same as a mapping.

    With the folder `out`, answers are kept in it, the same call sends only what is missing of the same revision, and
    the report is written as `report.json` and `report.html`, with the `worst` images. `client` is by default a new one.

    Raises `DatasetError` for data that cannot be used, `RevisionChangedError` if several revisions answered, and the
    errors of `Client.segment` that concern all images. An image that fails alone is in the report's `failed`.
    """
    if resamples < 0 or worst < 0:
        raise BadRequestError(f"resamples and worst must be 0 or more, got {resamples} and {worst}")
    if out is not None and Path(data).is_dir() and Path(out).resolve() == Path(data).resolve():
        raise BadRequestError(f"out must be another folder than the data's, got {str(out)!r}")
    dataset = read_dataset(
        Path(data),
        None if images is None else Path(images),
        # Slices are perhaps a JSON file in the folder of the data.
        beside=None if by is None or isinstance(by, Mapping) else Path(by),
    )
    slices = {} if by is None else slices_of(dataset, by)
    # Confidences are there only of models that have them.
    options = {"score_threshold": score_threshold, "max_detections": max_detections, "confidence": True}
    with nullcontext(client) if client is not None else Client() as asked:
        info = asked.model_info(model)
        task = next((task for mark, task in _TASKS.items() if mark in info.outputs), None)
        if task is None:
            raise BadRequestError(
                f"{model!r} is no segserve model: it has the outputs {', '.join(sorted(info.outputs))}"
            )
        if "SCORES" in info.outputs:
            dataset = objects_of_maps(dataset, info.classes, classes)
        if dataset.classes is None:
            dataset = replace(dataset, classes={one.id: one.name for one in info.classes})
        if dataset.labels == "maps":
            dataset = _counted_from(dataset, labels_from)
        measure = measure_of(task, dataset)
        if dataset.labels == "objects":
            images_of = (
                replace(each, annotations=tuple(without_gaps(each.annotations, each))) for each in dataset.images
            )
            dataset = replace(dataset, images=tuple(images_of))
        matched = matched_classes(dataset, info.classes, classes, background=measure == "pixels")
        labels = read_labels(measure, dataset, matched)
        kept = None if out is None else AnswerFile(Path(out) / ANSWERS, model, options)
        answers = _ask(asked, info, dataset, kept, options, in_flight, progress)
    results = [each if isinstance(each, SampleResult) else None for each in answers]
    limits = limits_of(labels, results, max_detections, info.max_detections)
    for answer, image in zip(results, dataset.images, strict=True):
        if answer is not None:
            answer.document["annotations"] = without_gaps(answer.document["annotations"], image)
    revisions = sorted({each.revision for each in results if each is not None})
    if len(revisions) > 1:
        raise RevisionChangedError(
            f"several revisions of {model!r} answered: {', '.join(revisions)}. Evaluate again when the rollout has "
            "ended; kept answers of the revision that serves then are not asked again",
            model=model,
        )
    scored = None if progress is None else partial(progress, "samples")
    scores = score(measure, dataset, matched, labels, results, resamples=resamples, progress=scored)
    by_slice = score_slices(measure, dataset, matched, labels, results, slices, resamples=resamples, progress=scored)
    report = EvaluationReport(
        model=model,
        revision=revisions[0],
        data=str(data),
        task=task,
        measure=measure,
        score=mean_estimate(scores.images, interval=resamples > 0),
        metrics=scores.metrics,
        classes=scores.classes,
        sizes=scores.sizes,
        slices={
            name: SliceScore(
                len(own.images),
                mean_estimate(own.images, interval=resamples > 0),
                {key: value for key, value in own.metrics.items() if key == MAIN[measure]},
            )
            for name, own in by_slice.items()
        },
        images=tuple(
            ImageScore(image.name, value, None if isinstance(answer, SampleResult) else str(answer))
            for image, value, answer in zip(dataset.images, scores.images, answers, strict=True)
        ),
        crowds=sum(len(own.classes) for _, own in labels),
        repeated=repeated_labels(dataset) if measure in ("masks", "boxes") else 0,
        notes=(*dataset.notes, *limits, *_notes_on_first(dataset, info, classes, results, scores.images)),
        options={
            "classes": [one.name for one in matched.values()],
            "scoreThreshold": score_threshold,
            "maxDetections": max_detections,
            "resamples": resamples,
        },
    )
    if out is not None:
        report.write(Path(out), _pictures(report, dataset, scores, list(matched.values()), worst))
    return report


def _counted_from(dataset: Dataset, first: int) -> Dataset:
    """Return a data set of label maps whose first class has this value."""
    classes = {number + first: name for number, name in (dataset.classes or {}).items()}
    return replace(dataset, classes=classes, labels_from=first)


def _notes_on_first(
    dataset: Dataset,
    info: ModelInfo,
    chosen: Sequence[str] | None,
    results: Sequence[SampleResult | None],
    scores: Sequence[float],
) -> Iterator[str]:
    """Yield that label maps of low scores fit the answers better if their classes count from 1."""
    if dataset.labels == "maps" and not dataset.labels_from and max(scores) < LOW:
        with suppress(DatasetError):
            moved = _counted_from(dataset, 1)
            matched = matched_classes(moved, info.classes, chosen, background=True)
            other = score("pixels", moved, matched, read_labels("pixels", moved, matched), results, resamples=0)
            if sum(other.images) > 2 * sum(scores):
                yield "label maps that count from 1 fit the answers better: try --labels-from 1"


def _ask(
    client: Client,
    info: ModelInfo,
    dataset: Dataset,
    kept: AnswerFile | None,
    options: dict[str, Any],
    in_flight: int,
    progress: EvaluationProgress | None,
) -> list[SampleResult | Exception]:
    """Return the answer to each image, or the error in its place; raises an error that concerns all images."""
    known = {} if kept is None else kept.read(info.revision)
    digests = [hashlib.sha256(_content(image)).hexdigest() for image in dataset.images]
    answers: list[SampleResult | Exception | None] = [known.get(digest) for digest in digests]
    for answer, image in zip(answers, dataset.images, strict=True):
        if isinstance(answer, SampleResult):
            check_size(answer, image)
    missing = [index for index, answer in enumerate(answers) if answer is None]
    done = len(answers) - len(missing)
    contents: Iterator[bytes] = (_content(dataset.images[index]) for index in missing)
    results = client.segment_many(contents, model=info.model, in_flight=in_flight, on_error="return", **options)
    for index, result in zip(missing, results, strict=True):
        if isinstance(result, Failure):
            if isinstance(result.error, HOPELESS):
                raise result.error
            answers[index] = result.error
        else:
            answer = SampleResult(result.revision, result.to_coco(file_name=dataset.images[index].name))
            answers[index] = answer
            if kept is not None:
                kept.append(digests[index], answer)
            check_size(answer, dataset.images[index])
        done += 1
        if progress is not None:
            progress("images", done, len(answers))
    errors = [each for each in answers if isinstance(each, Exception)]
    if len(errors) == len(answers):
        raise errors[0]
    return [each for each in answers if each is not None]


def _content(image: LabelledImage) -> bytes:
    try:
        return image.path.read_bytes()
    except OSError as error:
        raise DatasetError(f"image {str(image.path)!r} cannot be read: {error.strerror}") from error


def _pictures(
    report: EvaluationReport,
    dataset: Dataset,
    scores: DatasetScores,
    classes: Sequence[SegmentClass],
    worst: int,
) -> list[tuple[ImageScore, Image.Image | str]]:
    """Return the worst images that were answered, with labels, answer and difference, or why they are not drawn."""
    drawn: list[tuple[ImageScore, Image.Image | str]] = []
    answered = [place for place in report.ranking() if report.images[place].error is None]
    for place in answered[:worst]:
        answer, image = scores.answers[place], dataset.images[place]
        assert answer is not None
        try:
            labels = SampleResult("labels", document_of(scores.labels[place], image, classes))
            picture: Image.Image | str = draw_label_comparison(image.path, labels, answer, [])
        except (SegserveError, OSError, ValueError) as error:
            picture = str(error)
        drawn.append((report.images[place], picture))
    return drawn
