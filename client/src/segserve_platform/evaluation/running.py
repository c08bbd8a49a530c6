"""`segserve.evaluate`: asks a model labelled images through its gateway, and scores the answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve.calls.many import Failure
from segserve.client import Client
from segserve.errors import HOPELESS, DatasetError, RevisionChangedError
from segserve.exports.samples import SampleResult
from segserve.rendering.comparison import draw_label_comparison
from segserve.results.values import SegmentClass
from segserve_common.errors import BadRequestError, SegserveError
from segserve_platform.evaluation import IN_FLIGHT, RESAMPLES, WORST
from segserve_platform.evaluation.answers import ANSWERS, AnswerFile
from segserve_platform.evaluation.datasets import Dataset, LabelledImage, matched_classes, read_dataset, repeated_labels
from segserve_platform.evaluation.estimates import mean_estimate
from segserve_platform.evaluation.regions import check_size, document_of, without_gaps
from segserve_platform.evaluation.report import EvaluationReport, ImageScore, SliceScore
from segserve_platform.evaluation.scores import MAIN, DatasetScores, Task, measure_of, read_labels, score, score_slices
from segserve_platform.evaluation.slices import slices_of

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
    client: Client | None = None,
    progress: EvaluationProgress | None = None,
) -> EvaluationReport:
    """Ask a model all images of a data set, and score its answers against the labels.

    `data` is a COCO or COCO panoptic JSON file, or a folder: with one such file, with `data.yaml` (YOLO), or with
    `images` and `labels` (label maps as PNG or TIFF). `images` is the folder of a JSON file's images, which are
    otherwise looked for beside it. `classes` names those that count, by default all of the data set. `score_threshold`
    and `max_detections` are those of `Client.segment`; AP needs a low threshold. `resamples` samples of the images,
    drawn with a fixed seed, give the intervals.

    `by` divides the images into slices, each of which has its mean IoU, AP or PQ: by `folder`, or by a CSV file with
    the columns image and slice, a JSON file with the slice of each image, or the same as a mapping.

    With the folder `out`, answers are kept in it, the same call asks only what is missing of the same revision, and the
    report is written as `report.json` and `report.html`, with the `worst` images. `client` is by default a new one.

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
        if dataset.classes is None:
            dataset = replace(dataset, classes={one.id: one.name for one in info.classes})
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
