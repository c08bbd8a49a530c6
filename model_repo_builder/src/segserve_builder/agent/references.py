"""References of drift in reports: which are asked for, and how they are made of a file or of answers to golden images.

Answers to golden images are counted as the step `post` counts those to callers, by the same code.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from segserve_builder import sources
from segserve_builder.agent.answer_counts import report_of
from segserve_builder.agent.protocol import MAX_REFERENCE_LENGTH, AssignedModel, ReferenceReport
from segserve_builder.agent.scoring import DEATHS_ALLOWED, RETRIES, SHARE, shortened
from segserve_builder.errors import DriftReferenceError
from segserve_builder.golden import judging
from segserve_builder.sources import signatures
from segserve_builder.sources.access import Access
from segserve_builder.spec.model_spec import Golden, ReferenceFile
from segserve_common.kube.shards import pack, read_json

if TYPE_CHECKING:
    from segserve_builder.steps.answer_metrics import AnswerContents

MAX_FILE_BYTES: Final = 2**20
MAX_IMAGES: Final = 2000
"""Golden images that are counted, a sample of a larger set."""
MAX_REPORTED_LENGTH: Final = 2 * MAX_REFERENCE_LENGTH
"""Characters of files in one report; others follow once the operator has taken these."""
TURN_S: Final = 60.0
"""How long files that fill a report may keep others out: the operator takes none that is no reference."""

ReferenceOrigin: TypeAlias = ReferenceFile | Golden
"""What a reference is made of: a file, or the revision's golden set."""


@dataclass(slots=True)
class References:
    """The requested references of an agent and the latest outcomes, by revision."""

    _requested: dict[str, ReferenceOrigin] = field(default_factory=dict)
    _reports: dict[str, ReferenceReport] = field(default_factory=dict)
    _due_s: dict[str, float] = field(default_factory=dict)
    _failures: Counter[str] = field(default_factory=Counter)
    _deaths: Counter[str] = field(default_factory=Counter)
    _turn_s: float = -math.inf
    """When the files in the report changed places with others, or there were no others."""

    def follow(self, requested: Mapping[str, ReferenceOrigin]) -> None:
        """Take the requests of an assignment; forget the outcomes of others."""
        for revision, origin in tuple(self._requested.items()):
            if requested.get(revision) != origin:
                self._forget(revision)
        self._requested = dict(requested)

    def lose(self, revision: str) -> None:
        """Forget the outcome of a revision that the server no longer holds, unless it was given up for its deaths."""
        if self._deaths[revision] < DEATHS_ALLOWED:
            for table in (self._reports, self._due_s, self._failures):
                table.pop(revision, None)

    def _forget(self, revision: str) -> None:
        for table in (self._reports, self._due_s, self._failures, self._deaths):
            table.pop(revision, None)

    def due_s(self, revision: str) -> float:
        """Return from when on to make a revision's reference; never one that is not asked for or was made."""
        return self._due_s.get(revision, -math.inf) if revision in self._requested else math.inf

    def reported(self) -> dict[str, ReferenceReport]:
        """Return the latest outcomes by revision; of the files as many as a report holds, each only once."""
        shown: dict[str, ReferenceReport] = {}
        files, length = set[str](), 0
        for revision, report in self._reports.items():
            if report.content:
                if report.sha256 in files or length + len(report.content) > MAX_REPORTED_LENGTH:
                    continue
                files.add(report.sha256)
                length += len(report.content)
            shown[revision] = report
        return shown

    def rotate(self, now_s: float) -> None:
        """Let files that the report had no room for take the place of those in it, every `TURN_S`."""
        files = {revision: report.sha256 for revision, report in self.reported().items() if report.content}
        reported = frozenset(files.values())
        if all(report.sha256 in reported for report in self._reports.values() if report.content):
            self._turn_s = now_s
        elif now_s >= self._turn_s + TURN_S:
            self._turn_s = now_s
            for revision in files:
                self._reports[revision] = self._reports.pop(revision)

    def keep(self, revision: str, report: ReferenceReport) -> None:
        """Record the reference of a revision."""
        if revision in self._requested:
            self._forget(revision)
            self._reports[revision] = report
            self._due_s[revision] = math.inf

    def fail(
        self,
        revision: str,
        reason: str,
        message: str,
        now_s: float,
        duration_s: float,
        *,
        retryable: bool,
        died: bool = False,
    ) -> None:
        """Record why a revision has no reference after an attempt that took `duration_s`.

        A file is always tried again, as somebody may mend it. Golden images are if it may help, in a small part of the
        server's time, and until they have ended the server or a step too often.
        """
        origin = self._requested.get(revision)
        if origin is None:
            return
        self._failures[revision] += 1
        delay_s = RETRIES.delay_s(self._failures[revision])
        if isinstance(origin, Golden):
            self._deaths[revision] += died
            again = (retryable or died) and self._deaths[revision] < DEATHS_ALLOWED
            delay_s = max(delay_s, duration_s / SHARE) if again else math.inf
        self._due_s[revision] = now_s + delay_s
        self._reports[revision] = ReferenceReport(sha256=origin.sha256, reason=reason, message=shortened(message))


def read_reference(file: ReferenceFile, base: str | None, cache: Path, access: Access) -> ReferenceReport:
    """Return the reference in a file, which is fetched and checked; whoever asked for it judges its fields.

    Raises `DriftReferenceError` if it is not a JSON object or packs too large, and as `sources.fetch` and
    `signatures.verify_reference` do.
    """
    limited = access.model_copy(update={"max_bytes": min(access.max_bytes, MAX_FILE_BYTES)})
    uri = sources.resolved(file.uri, base)
    path = sources.fetch(uri, file.sha256, cache, limited)
    signatures.verify_reference(uri, path, access)
    content = path.read_bytes()
    try:
        value = read_json(content)
        packed = pack(value)
    except ValueError as error:
        raise DriftReferenceError(f"{file.uri} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DriftReferenceError(f"{file.uri} holds a {type(value).__name__}; a JSON object is expected")
    if len(packed) > MAX_REFERENCE_LENGTH:
        raise DriftReferenceError(
            f"{file.uri} takes {len(packed)} characters packed; allowed are {MAX_REFERENCE_LENGTH}"
        )
    return ReferenceReport(sha256=file.sha256, content=packed)


def sampled(cases: Sequence[judging.Case], sha256: str) -> Sequence[judging.Case]:
    """Return the images to count of a golden set with this digest: all, or the same sample on each server."""
    return cases if len(cases) <= MAX_IMAGES else random.Random(sha256).sample(cases, MAX_IMAGES)


def count_golden(
    assigned: AssignedModel, sha256: str, answered: Iterable[tuple[str, bytes, judging.Answer]]
) -> ReferenceReport:
    """Return the histograms of images, by name and encoded, and the answers to them, with masks as run lengths.

    Objects of one image depend on each other. A histogram's `observations` are Kish's effective number of images,
    (sum m)^2 / sum m^2 where an image has m observations: images with one each count as one.
    """
    import numpy as np

    from segserve_builder.stages.base import RequestOptions
    from segserve_builder.stages.decode import Decode
    from segserve_builder.steps.answer_metrics import AnswerMetrics
    from segserve_builder.steps.image_statistics import measure
    from segserve_builder.values import Encoded

    own = assigned.model_copy(update={"metrics": assigned.metrics.model_copy(update={"slices": None})})
    pipeline = own.pipeline
    decode = next((step.stage for step in pipeline.preprocess if isinstance(step.stage, Decode)), Decode())
    metrics = AnswerMetrics(pipeline, own.metrics)
    images, counted = 0, dict[str, list[tuple[int, ...]]]()
    for name, data, answer in answered:
        given = pipeline.input
        image = decode(Encoded(data, given.colour, given.dtype, given.max_pixels), RequestOptions())
        metrics.count_contents(_contents_of(name, answer), image.transform, measure(image.pixels))
        series = {
            (each.name, each.labels.get("class", ""), each.labels.get("le", "")): each.amount for each in metrics.take()
        }
        for histogram, counts in report_of({"": series}, own).histograms.items():
            counted.setdefault(histogram, []).append(counts)
        images += 1
    tables = {name: np.array(rows) for name, rows in counted.items()}
    sizes = {name: table.sum(axis=1, dtype=float) for name, table in tables.items()}
    several = [name for name, each in sizes.items() if each.max() > 1]
    return ReferenceReport(
        sha256=sha256,
        images=images,
        histograms={name: tuple(table.sum(axis=0).tolist()) for name, table in tables.items()},
        observations={name: round(float(each.sum() ** 2 / (each @ each)), 2) for name, each in sizes.items()},
        image_shares={
            name: tuple((tables[name] / sizes[name][:, None]).mean(axis=0).round(4).tolist()) for name in several
        },
    )


def _contents_of(image: str, answer: judging.Answer) -> AnswerContents:
    """Return what the step `post` would count: of a semantic model its classes, else objects or segments."""
    import numpy as np
    from pycocotools import mask as coco

    from segserve_builder.steps.answer_metrics import AnswerContents

    columns = judging.with_columns(image, answer)
    height, width = map(int, columns["SIZE"])
    areas = None
    if "MASKS" in columns:
        masks = judging.run_length_masks(image, columns, (height, width))
        areas = np.array(coco.area([{"size": [height, width], "counts": each} for each in masks]), np.int64)
    if areas is not None and "SCORES" not in columns:
        (present,) = areas.nonzero()
        scores = columns.get("CONFIDENCE")
        known = scores[present] if scores is not None and len(scores) else np.full(len(present), np.nan)
        return AnswerContents(len(present) < 2, columns["CLASSES"][present], known, areas[present])
    classes, scores = columns["CLASSES"], columns["SCORES"].astype(float)
    return AnswerContents(not len(classes), classes, scores, areas, objects=np.ones(len(classes)))
