"""The report of an evaluation: as a table, as JSON whose field names stay, and as a page with the worst images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve.rendering.display import PAGE_STYLE, printable
from segserve_common.files import replace_file
from segserve_platform.evaluation.estimates import Estimate
from segserve_platform.evaluation.scores import Estimates, Measure, Task

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

REPORT: Final = "report.json"
PAGE: Final = "report.html"
ALL: Final = "all"
_TABLE: Final = ("miou", "iou", "boundaryIou", "dice", "recall", "ap", "ap50", "ar100", "pq", "boundaryPq", "ece")
"""The figures of the table; JSON and the page have all of them."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The score of one image, 0 to 1; `error` says why it was not answered."""

    image: str
    score: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SliceScore:
    """How good the answers to some of the images are: their number, the mean of their scores, and the main figure.

    `metrics` is empty where that cannot be measured, as AP of images without objects.
    """

    images: int
    score: Estimate
    metrics: Estimates


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """How good a revision's answers are on labelled images.

    `metrics` are over all images, `classes` by name, `sizes` of small, medium and large objects. `score` is the mean of
    `images`, each of which has its mean IoU, or the panoptic quality of its objects. An image that was not answered
    counts as one in which nothing was found. `slices` are by name, if any were requested. `crowds` is the number of
    labels that are marked as crowds (iscrowd, difficult) and count in no figure, `repeated` the number of objects that
    are labelled again with the same class and outline. `notes` name label files that are absent or belong to no
    image, and say how labels were read and which limits cut.
    """

    model: str
    revision: str
    data: str
    task: Task
    measure: Measure
    score: Estimate
    metrics: Estimates
    classes: Mapping[str, Estimates]
    sizes: Mapping[str, Estimates]
    images: tuple[ImageScore, ...]
    options: Mapping[str, Any]
    slices: Mapping[str, SliceScore] = field(default_factory=dict)
    crowds: int = 0
    repeated: int = 0
    notes: tuple[str, ...] = ()

    @property
    def remark(self) -> str | None:
        """What is left out of the figures, or spoils them; None if nothing does."""
        remarks = {
            f"{self.crowds} labels are crowds (iscrowd, difficult) and left out of all figures": self.crowds,
            f"{self.repeated} labels are copies of another one of their image, and count as missed": self.repeated,
            f"{len(self.failed)} of {len(self.images)} images were not answered, and count as empty": len(self.failed),
        }
        return "; ".join([*(text for text, count in remarks.items() if count), *self.notes]) or None

    @property
    def failed(self) -> tuple[ImageScore, ...]:
        """The images that were not answered."""
        return tuple(each for each in self.images if each.error is not None)

    def worst(self, count: int) -> tuple[ImageScore, ...]:
        """Return the images with the lowest scores, the lowest first."""
        return tuple(self.images[place] for place in self.ranking()[:count])

    def ranking(self) -> list[int]:
        """Return the places of the images, lowest scores first."""
        return sorted(range(len(self.images)), key=lambda place: self.images[place].score)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        groups = {"classes": self.classes, "sizes": self.sizes}
        return {
            "model": self.model,
            "revision": self.revision,
            "data": self.data,
            "task": self.task,
            "measure": self.measure,
            "options": dict(self.options),
            "imageCount": len(self.images),
            "failedCount": len(self.failed),
            "crowdCount": self.crowds,
            "repeatedCount": self.repeated,
            "notes": list(self.notes),
            "score": _json(self.score),
            "metrics": {name: _json(each) for name, each in self.metrics.items()},
            **{
                key: {group: {name: _json(each) for name, each in own.items()} for group, own in found.items()}
                for key, found in groups.items()
            },
            "slices": {
                name: {
                    "images": own.images,
                    "score": _json(own.score),
                    "metrics": {metric: _json(each) for metric, each in own.metrics.items()},
                }
                for name, own in self.slices.items()
            },
            "images": [
                {"image": each.image, "score": round(each.score, 4)}
                | ({} if each.error is None else {"error": each.error})
                for each in self.images
            ],
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        names, rows = self._rows(_TABLE)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("", no_wrap=True)
        for name in names:
            table.add_column(name, no_wrap=True, justify="right")
        for title, *cells in rows:
            table.add_row(Text(title), *cells)
        return table

    def to_html(self, pictures: Sequence[tuple[ImageScore, Image.Image | str]] = ()) -> str:
        """Return the report as a page that refers to nothing outside of it, with a section for each picture.

        A text says why an image has no picture.
        """
        names, rows = self._rows(None)
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *names))
        body = "".join(
            f'<tr><th scope="row">{escape(title)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
            for title, *cells in rows
        )
        model = escape(printable(self.model, 200))
        about = f"{self.revision}, a {self.task} model, on {len(self.images)} images of {self.data}"
        failed = "".join(
            f"<li>{escape(printable(each.image, 200))}: {escape(printable(each.error or '', 300))}</li>"
            for each in self.failed
        )
        sections = "".join(
            f"<section><h2>{escape(printable(each.image, 200))}: {each.score:.3f}</h2>"
            + (
                f"<p>not drawn: {escape(printable(picture, 300))}</p></section>"
                if isinstance(picture, str)
                else f'<img alt="image, labels, answer and difference of {escape(printable(each.image, 200))}" '
                f'src="data:image/jpeg;base64,{_jpeg(picture)}"></section>'
            )
            for each, picture in pictures
        )
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{model}: evaluation</title>'
            f"<style>{PAGE_STYLE}</style><h1>{model}</h1><p>{escape(printable(about, 500))}</p>"
            f"<p>Score of an image, on average: {escape(str(self.score))}</p>"
            + (f"<p>{escape(self.remark)}</p>" if self.remark else "")
            + f"<table><caption><small>with 95 % intervals of a bootstrap of the images</small></caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<h2>{len(self.failed)} images were not answered</h2><ul>{failed}</ul>" if failed else "")
            + (f"<h2>The {len(pictures)} images with the lowest scores</h2>{sections}" if sections else "")
            + "</html>\n"
        )

    def write(self, folder: Path, pictures: Sequence[tuple[ImageScore, Image.Image | str]] = ()) -> None:
        """Write `report.json` and `report.html` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            (REPORT, json.dumps(self.to_dict(), indent=1) + "\n"),
            (PAGE, self.to_html(pictures)),
        ):
            replace_file(folder / name, text)

    def _rows(self, wanted: Sequence[str] | None) -> tuple[list[str], list[list[str]]]:
        """Return the titles of columns, and rows of a title and cells, of the requested figures, or all."""
        slices = [
            (f"slice {name}, {own.images} image{'s' if own.images > 1 else ''}", own.metrics)
            for name, own in self.slices.items()
        ]
        groups = [(ALL, self.metrics), *slices, *self.sizes.items(), *self.classes.items()]
        titled = [(group, {"IOU" if name == "miou" else name.upper(): each for name, each in own.items()
                           if wanted is None or name in wanted}) for group, own in groups]  # fmt: skip
        names = list(dict.fromkeys(name for _, own in titled for name in own))
        rows = [
            [printable(group), *(str(own[name]) if name in own else "-" for name in names)] for group, own in titled
        ]
        return names, rows


def _json(estimate: Estimate) -> dict[str, float]:
    return estimate.model_dump(exclude_none=True)


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
