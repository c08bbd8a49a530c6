"""The samples that models of this machine keep (`spec.capture`), as the page's gallery shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from mimetypes import guess_type
from typing import TYPE_CHECKING, Final

from segserve.platform import Cluster
from segserve_common.errors import BadRequestError
from segserve_platform.platforms.errors import ControlError, NotFoundError
from segserve_platform.platforms.port import Json
from segserve_ui.backend import UiPlatform

if TYPE_CHECKING:
    from segserve_builder.capture.store import ManifestRow, SampleStore

NEWEST: Final = 1000
"""Samples of a model that are read, the newest; `segserve samples` lists older ones."""
SHOWN: Final = 60
KEPT: Final = 5000
"""Samples whose classes are kept in memory: those of a sample never change."""
PICTURES: Final = frozenset({"image/jpeg", "image/png", "image/webp", "image/tiff"})


class Samples:
    """The samples of this machine's models; those of a cluster are where this process need not have rights."""

    def __init__(self, place: UiPlatform) -> None:
        self._place = place
        self._classes: dict[str, Mapping[str, int]] = {}

    def read(self, model: str, reason: str, class_name: str) -> Json:
        """Return the `models` that keep samples, and of one of them `samples`, `reasons` and `classes` with counts.

        An empty `model` is the first, an empty `reason` or `class_name` any. Raises `BadRequestError` for an unknown
        reason, and `NotFoundError` for a model that keeps no samples.
        """
        if isinstance(self._place.ref, Cluster):
            return {"models": [], "samples": [], "note": "of a cluster, `segserve samples list MODEL` lists them"}
        from segserve_builder.capture.rule import CaptureReason

        if reason and reason not in tuple(CaptureReason):
            raise BadRequestError(f"reason is {reason!r}; allowed: {', '.join(CaptureReason)}")
        sinks = self._sinks()
        if not model and not sinks:
            return {"models": [], "samples": [], "note": "no model has spec.capture"}
        model = model or next(iter(sinks))
        with self._opened(model, sinks) as store:
            rows = list(store.rows(model, newest=NEWEST))[::-1]
            found = [(row, self._classes_of(store, row)) for row in rows]
        chosen = [row for row, classes in found if (not reason or reason in row.reasons)
                  and (not class_name or class_name in classes)]  # fmt: skip
        return {
            "models": list(sinks),
            "model": model,
            "total": len(chosen),
            "reasons": Counter(each.value for row in rows for each in row.reasons),
            "classes": Counter(name for _, classes in found for name in classes),
            "samples": [_described(row, self._classes[row.key]) for row in chosen[:SHOWN]],
        }

    def image(self, model: str, key: str) -> tuple[bytes, str]:
        """Return the image of a sample as it was kept, and its media type."""
        if isinstance(self._place.ref, Cluster):
            raise NotFoundError("samples are only shown of this machine's platform")
        with self._opened(model, self._sinks()) as store:
            row = store.row(model, key)
            if row is None:
                raise NotFoundError(f"{model} has no sample {key!r}")
            kind = guess_type(row.image)[0]
            return store.image(row), kind if kind in PICTURES else "application/octet-stream"

    def _sinks(self) -> dict[str, str]:
        """Return where each model that keeps samples keeps them."""
        captures = {
            each["metadata"]["name"]: each["spec"].get("capture") or {} for each in self._place.platform.models()
        }
        return {name: capture["sink"] for name, capture in captures.items() if capture.get("sink")}

    @contextmanager
    def _opened(self, model: str, sinks: Mapping[str, str]) -> Iterator[SampleStore]:
        from segserve_builder.capture.store import SampleStore
        from segserve_builder.errors import BuilderError
        from segserve_operator.adapters.local.access import local_access

        if model not in sinks:
            raise NotFoundError(f"{model!r} keeps no samples; these models do: {', '.join(sinks) or 'none'}")
        try:
            yield SampleStore(sinks[model], local_access())
        except BuilderError as error:
            raise ControlError(f"the samples of {model} cannot be read: {error}") from error

    def _classes_of(self, store: SampleStore, row: ManifestRow) -> Mapping[str, int]:
        """Return the number of annotations of each class in a sample."""
        if row.key not in self._classes:
            if len(self._classes) >= KEPT:
                self._classes.clear()
            document = store.coco(row) or {}
            names = {each["id"]: each["name"] for each in document.get("categories") or ()}
            found = (each.get("category_id") for each in document.get("annotations") or ())
            self._classes[row.key] = Counter(names.get(number, str(number)) for number in found)
        return self._classes[row.key]


def _described(row: ManifestRow, classes: Mapping[str, int]) -> Json:
    return {
        "key": row.key,
        "model": row.model,
        "revision": row.revision,
        "capturedAt": datetime.fromtimestamp(row.captured_at_s, UTC).isoformat(timespec="seconds"),
        "reasons": [each.value for each in row.reasons],
        "classes": dict(classes),
        "uncertainty": row.uncertainty,
        "disagreement": row.disagreement,
        "slice": row.slice,
        "height": row.size[0],
        "width": row.size[1],
    }
