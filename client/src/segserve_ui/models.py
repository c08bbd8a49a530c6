"""The models of a platform as the page lists them: state, revisions and weights, activity, conditions in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from segserve_operator.mapping.manifests import named_models
from segserve_platform.platforms.activity import ActivityWindow, ModelRow
from segserve_platform.platforms.errors import ControlError, InvalidResourceError
from segserve_platform.platforms.manifests import stored_pipeline
from segserve_platform.platforms.metrics import MetricsSource
from segserve_platform.platforms.port import Json, Platform
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.waiting import age, readiness

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
EXAMPLES: Final = 12
"""Images of a golden set that are offered."""
_MOVING: Final = ("Progressing", "Reconciling")
_DRIFTING: Final = "Drifting"
_GOOD_IF_FALSE: Final = (*_MOVING, _DRIFTING, "Degraded", "Stalled")


@dataclass(frozen=True, slots=True)
class StoredModels:
    """Whether a platform runs, and the manifests of its models, as read at one time."""

    runs: bool
    manifests: list[Json]

    @classmethod
    def of(cls, platform: Platform) -> StoredModels:
        """Read them; raises as `Platform.models` does."""
        return cls(platform.runs(), platform.models())


class ModelsList:
    """Lists all models with their states, and the example images of each, where there are any."""

    def __init__(self, *, examples: bool) -> None:
        self._examples = examples
        self._tasks: dict[str, tuple[list[Json], str]] = {}

    def describe(self, found: StoredModels) -> Json:
        """Return `models`, with `prompts` if clicks and boxes select their objects, and `examples`: images by model."""
        stored = {each["metadata"]["name"]: each for each in found.manifests}
        return {
            "models": [
                {
                    "name": each["metadata"]["name"],
                    "task": self._task(each, stored),
                    "state": state_of_model(each, runs=found.runs),
                    "prompts": "decoder" in each["spec"],
                }
                for each in found.manifests
            ],
            "examples": {
                name: [path.name for path in example_images(each)] for name, each in stored.items() if self._examples
            },
        }

    def _task(self, manifest: Json, stored: Mapping[str, Json]) -> str:
        """Return a model's task, derived anew once its spec, or the spec of a model that it names, has changed."""
        name = manifest["metadata"]["name"]
        specs = [stored[each]["spec"] for each in (name, *named_models(manifest).values()) if each in stored]
        if name not in self._tasks or self._tasks[name][0] != specs:
            self._tasks[name] = specs, task_of(manifest, stored)
        return self._tasks[name][1]


def task_of(manifest: Json, stored: Mapping[str, Json]) -> str:
    """Return a model's task: semantic, instance, panoptic, detection or keypoints; empty if it cannot be derived."""
    try:
        from segserve_builder.errors import BuilderError
        from segserve_builder.steps.postprocess import check_postprocess
    except ImportError:
        return ""  # a client of clusters may lack the builder
    try:
        return str(check_postprocess(stored_pipeline(manifest, stored)))
    except (BuilderError, InvalidResourceError):
        return ""  # of another version


class ModelsOverview:
    """Describes all models and their activity; rates are between this snapshot and an earlier one."""

    def __init__(self, metrics: MetricsSource | None, window_s: float) -> None:
        self._metrics = metrics
        self._window = ActivityWindow(window_s)

    def describe(self, found: StoredModels) -> Json:
        """Return `models`, `servers` (None without metrics), and `notes` on missing numbers."""
        runs, notes = found.runs, list[str]()
        activity: Mapping[str, ModelRow] = {}
        servers: Json | None = None
        if self._metrics is None:
            notes.append("rates, latencies, memory and queues of a cluster come from its Prometheus: start the page "
                         "with `segserve ui --prometheus URL`")  # fmt: skip
        elif runs:
            try:
                activity, servers = self._activity(self._metrics)
            except ControlError as error:
                notes.append(f"no metrics: {error}")
        models = [self._row(manifest, activity, runs=runs) for manifest in found.manifests]
        return {"models": models, "servers": servers, "notes": notes, "runs": runs}

    def _activity(self, metrics: MetricsSource) -> tuple[Mapping[str, ModelRow], Json | None]:
        self._window.add(metrics.snapshot())
        if len(self._window.snapshots) < 2:
            return {}, None
        rows, servers = self._window.rows()
        return {row.model: row for row in rows}, servers.to_json()

    def _row(self, manifest: Json, activity: Mapping[str, ModelRow], *, runs: bool) -> Json:
        name, status = manifest["metadata"]["name"], manifest.get("status") or {}
        row = activity.get(name)
        conditions = [_condition(each) for each in status.get("conditions") or ()]
        counted = len(self._window.snapshots) > 1 and runs and bool(self._metrics)
        idle = {"requestsPerSecond": 0.0} if counted else None
        return {
            "name": name,
            "family": manifest["spec"].get("family", ""),
            "pool": manifest["spec"].get("pool") or "default",
            "classes": len(manifest["spec"].get("classes") or ()),
            "state": state_of_model(manifest, runs=runs),
            "revisions": list(_revisions(manifest)),
            "slo": status.get("slo"),
            "device": status.get("device"),
            "drift": next((each for each in conditions if each["type"] == _DRIFTING), None),
            "rollout": status.get("phase"),
            "conditions": conditions,
            "activity": _finite(row.to_json()) if row is not None else idle,
            "rates": [round(rate, 3) for rate in self._window.rates.get(name, ())],
        }


def state_of_model(manifest: Json, *, runs: bool = True) -> Json:
    """Return whether a model serves: `word` for it, its `tone` (good, moving, bad or quiet), and a `text`."""
    if not runs:
        return {"word": "Stopped", "tone": "quiet", "text": "no platform is running", "serves": False}
    state = readiness(manifest)
    tone = "good" if state.serves else "bad" if state.failed else "moving"
    return {"word": state.state, "tone": tone, "text": state.problem or state.text, "serves": state.answers}


def _revisions(manifest: Json) -> Iterator[Json]:
    roles, present = (manifest.get("status") or {}).get("roles") or {}, Present.of(manifest)
    for role, revision in present.revisions.items():
        holder = roles[role]
        why = ": ".join(filter(None, (holder.get("reason"), holder.get("message"))))
        yield {"role": role, "revision": revision, "weight": present.shares[role],
               "failed": holder.get("state") == "Failed", "text": why, "age": age(holder["since"])}  # fmt: skip


def _condition(found: Json) -> Json:
    wanted = "False" if found["type"] in _GOOD_IF_FALSE else "True"
    tone = "good" if found["status"] == wanted else "moving" if found["type"] in _MOVING else "bad"
    text = ": ".join(filter(None, (found.get("reason"), found.get("message"))))
    return {"type": found["type"], "status": found["status"], "tone": tone if found["status"] != "Unknown" else "quiet",
            "text": text, "age": age(found["lastTransitionTime"])}  # fmt: skip


def _finite(row: Json) -> Json:
    """Return the numbers that JSON can hold: a latency beyond the last bin is infinite."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def example_images(manifest: Mapping[str, Any]) -> list[Path]:
    """Return the images of a model's golden set if it is a folder of this machine, in the order of their names."""
    parts = urlsplit(((manifest.get("spec") or {}).get("golden") or {}).get("uri") or "")
    folder = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.fragment or not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return found[:EXAMPLES]
