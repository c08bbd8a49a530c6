"""Platforms that a client controls, with what an operator would write into them: in files, and behind an API server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from fakes import rollout_records as records
from fakes.kube_http import FakeServer
from segserve import AsyncClient, Client, Local
from segserve_common.files import write_private
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import StateFolder, write_yaml
from segserve_operator.adapters.local.rollouts import RolloutFiles
from segserve_operator.api.segmentation_model import SegmentationModelStatus
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.world.observed import ModelStatus, ObservedCondition
from segserve_operator.mapping.statuses import to_api
from segserve_platform.platforms.port import Platform

Json = dict[str, Any]
API = "apis/segserve.dev/v1alpha1"
KINDS = (f"{API}/segmentationmodels", f"{API}/tritonpools", f"{API}/segmentationrollouts", "api/v1/configmaps")
PATH = f"/{API}/namespaces/lab/segmentationmodels"

SERVES = (
    ObservedCondition("Ready", "True", "Serving", "it gets all requests"),
    ObservedCondition("Progressing", "False", "Done"),
    ObservedCondition("Degraded", "False", "AsWanted"),
)
FAILED = (
    ObservedCondition("Ready", "False", "NoRevision"),
    ObservedCondition("Progressing", "False", "Done"),
    ObservedCondition("Degraded", "True", "GoldenFailed", "IoU 0.2, allowed 0.9"),
)
LOADING = (
    ObservedCondition("Ready", "False", "Loading", "one of two servers"),
    ObservedCondition("Progressing", "True", "Loading"),
)


def status(
    conditions: tuple[ObservedCondition, ...] = SERVES, at: RolloutState | None = None, handled: tuple[str, ...] = ()
) -> Json:
    """Return a model's status of its first generation."""
    known = ModelStatus(
        observed_generation=1,
        roles=records.roles_of(at),
        conditions=conditions,
        weight=records.weight_of(at),
        url="http://gateway/v2/models/coins",
        rollout=at,
        handled=handled,
    )
    return to_api(known, SegmentationModelStatus(), datetime.now(UTC)).to_dict()


class LocalHarness:
    """This machine's platform in a state folder; it counts as up while this process lives."""

    def __init__(self, folder: Path) -> None:
        self.state = StateFolder(folder)
        own = asdict(ProcessRecord.of(os.getpid()))
        found = {"process": own, "url": "http://127.0.0.1:1", "observed": True}
        folder.mkdir(exist_ok=True)
        write_private(self.state.platform, json.dumps(found))

    def place(self) -> Local:
        return Local(self.state.root)

    def tell(self, model: str, status: Json) -> None:
        write_yaml(self.state.objects / "SegmentationModel" / model / "status.yaml", status)

    def vanish(self, model: str) -> None:
        shutil.rmtree(self.state.objects / "SegmentationModel" / model)

    def keep(self, record: Record) -> None:
        RolloutFiles(self.state.objects).write(record)

    def annotations(self, model: str) -> Json:
        path = self.state.objects / "SegmentationModel" / model / "spec.yaml"
        return dict(yaml.safe_load(path.read_text())["metadata"].get("annotations") or {})


class ClusterHarness:
    """A namespace behind an API server in memory."""

    def __init__(self) -> None:
        self.server = FakeServer()
        for kind in KINDS:
            self.server.put(kind)

    def place(self) -> Platform:
        return self.server.platform()

    def tell(self, model: str, status: Json) -> None:
        found = self.server.objects[f"{PATH}/{model}"]
        self.server.objects[f"{PATH}/{model}"] = {**found, "status": status}

    def vanish(self, model: str) -> None:
        self.server.objects.pop(f"{PATH}/{model}", None)

    def keep(self, record: Record) -> None:
        self.server.put(f"{API}/segmentationrollouts", records.manifest(record))

    def annotations(self, model: str) -> Json:
        return dict(self.server.objects[f"{PATH}/{model}"]["metadata"].get("annotations") or {})


Harness: TypeAlias = LocalHarness | ClusterHarness


class Caller:
    """Calls a client by dotted names, `models.get`: one for threads or one for asyncio, with the same answers."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    def __call__(self, name: str, *given: Any, **named: Any) -> Any:
        part, _, verb = name.partition(".")
        called = getattr(getattr(self.client, part), verb)
        return called(*given, **named) if isinstance(self.client, Client) else asyncio.run(called(*given, **named))


@contextmanager
def answering(harness: Harness, model: str, answer: Callable[[str], Json]) -> Iterator[None]:
    """Do what an operator does: give the first request that comes its answer, a status; it gets the request's text."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for key, value in harness.annotations(model).items():
                harness.tell(model, answer(f"{key.removeprefix('segserve.dev/')}={value}"))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
