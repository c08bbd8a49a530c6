"""What a cluster tells of requests: samples in a bucket, traces at a collector, and drift of images and answers."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image, ImageEnhance

from fakes.callers import PHOTO
from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.collector import Collector, collector
from fakes.installed_operator import installed
from fakes.object_servers import BUCKET, ObjectServer, s3_server
from fakes.served_namespace import ServedNamespace
from fakes.terminal import Terminal
from fakes.waiting import meanwhile
from segserve import Client, SegserveError
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, SERVER

pytestmark = [pytest.mark.cluster, pytest.mark.needs("peers"), pytest.mark.timeout(900)]

SECRET: Final = "bucket"
SINK: Final = f"s3://{BUCKET}/samples"
PAUSED: Final = {"steps": [{"weight": 50, "pause": True}]}
DRIFT: Final = {
    "window": "5s",
    "minAnswers": 10,
    "falseAlarmsPerMonth": 1,
    "reference": {"window": {"duration": "1m"}},
}
TRACED, SAMPLED, WATCHED = "coins", "coins-instances", "coins-watched"
LONG_S: Final = 300.0


@dataclass(frozen=True)
class Observed:
    """A pool whose gateway traces what its callers sample, the collector of its spans, and a bucket for samples."""

    served: ServedNamespace
    spans: Collector
    bucket: ObjectServer

    def pool(self, **gateway: Any) -> Json:
        """Return the pool with more settings of its gateway."""
        artifacts = {
            "endpoints": {"s3": self.bucket.endpoint},
            "credentials": [{"scheme": "s3", "host": BUCKET, "secretRef": {"name": SECRET}}],
        }
        tracing = {"endpoint": self.spans.url, "samplingRatio": 0}
        return pool(
            gateway={
                "replicas": 1,
                "tracing": tracing,
                "accessLog": {"samplingRatio": 1},
                **gateway,
            },
            artifacts=artifacts,
        )

    def containers(self, component: str) -> dict[str, list[str]]:
        """Return the names of the containers of the pods of a component, by the pods' uids."""
        pods = self.served.cluster.pods(self.served.name, f"{COMPONENT_LABEL}={component}")
        return {pod["metadata"]["uid"]: [each["name"] for each in pod["spec"]["containers"]] for pod in pods}

    @property
    def terminal(self) -> Terminal:
        """Return a shell with the credentials of somebody who may read the samples."""
        variables = {
            "AWS_ACCESS_KEY_ID": self.bucket.keys["access-key-id"],
            "AWS_SECRET_ACCESS_KEY": self.bucket.keys["secret-access-key"],
            "AWS_ENDPOINT_URL": self.bucket.endpoint,
        }
        return Terminal(self.served.cluster, self.served.name, variables)

    def samples(self, name: str, *arguments: str) -> Any:
        """Return a model's samples as the command line lists them."""
        done = self.terminal("samples", "list", name, "-o", "json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def observed(cluster: Cluster) -> Iterator[Observed]:
    with ExitStack() as stack:
        spans = stack.enter_context(collector("0.0.0.0", cluster.host))
        bucket = stack.enter_context(s3_server(cluster.host))
        name = stack.enter_context(cluster.namespace("observed"))
        reached = [f"notifications.hosts={{{cluster.host}}}"]
        operator = stack.enter_context(installed(cluster, [name], replicas=2, more=reached))
        found = Observed(ServedNamespace(cluster, operator, name), spans, bucket)
        found.served.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": bucket.keys},
            found.pool(),
            model(TRACED, rollout=PAUSED),
            model(SAMPLED, capture={"share": 1, "perMinute": 600, "sink": SINK}),
            model(name=WATCHED, drift=DRIFT),
        )
        found.served.wait_ready(TRACED, SAMPLED, WATCHED, timeout_s=LONG_S)
        yield found


def test_gateways_keep_samples_once_their_pool_allows_it_and_servers_are_as_before(
    observed: Observed, tmp_path: Path
) -> None:
    served, before = observed.served, observed.containers(SERVER)
    said = served.becomes(SAMPLED, "Degraded", "True", "NothingCaptured")
    assert "spec.gateway.capture" in said["message"]
    assert not [name for names in observed.containers(GATEWAY).values() for name in names if name == "capture"]

    served.apply(observed.pool(capture=True))
    served.becomes(SAMPLED, "Degraded", "False")
    with Client(served.url()) as client:
        rows = served.cluster.wait("a sample", lambda: asked(observed, client), LONG_S)

    row = rows[0]
    assert row["revision"] == served.stable(SAMPLED)
    image = tmp_path / "sample"
    shown = observed.terminal("samples", "show", SAMPLED, row["request_id"], "--image", image)
    assert shown.returncode == 0, shown.stderr
    with Image.open(image) as kept, Image.open(io.BytesIO(PHOTO)) as photo:
        assert kept.size == photo.size
    assert observed.samples(TRACED, "--sink", SINK) == []
    assert observed.containers(SERVER).items() >= before.items()

    deleted = observed.terminal("samples", "delete", SAMPLED, "--request-id", row["request_id"])
    assert deleted.returncode == 0, deleted.stderr
    assert row["request_id"] not in {each["request_id"] for each in observed.samples(SAMPLED)}


def asked(observed: Observed, client: Client) -> list[Json]:
    """Ask both models, and return the samples of one: copies are dropped until the service has started."""
    for name in (TRACED, SAMPLED):
        client.segment(PHOTO, model=name)
    rows: list[Json] = observed.samples(SAMPLED)
    return rows


@dataclass
class Camera:
    """Asks the watched model for one photograph, over and over, until it ends."""

    client: Client
    brightness: float = 1.0
    answers: int = 0

    def film(self, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            with suppress(SegserveError):  # while the cluster is busy
                self.client.segment(photo(self.brightness), model=WATCHED)
                self.answers += 1


def photo(brightness: float) -> bytes:
    file = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(PHOTO))).enhance(brightness).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def camera(observed: Observed) -> Iterator[Camera]:
    with Client(observed.served.url()) as client, meanwhile((found := Camera(client)).film):
        yield found


def leader(served: ServedNamespace) -> str:
    """Return the pod that leads."""
    lease = served.cluster.get(served.operator.namespace, "lease", "segserve-operator")
    return str(lease["spec"]["holderIdentity"] or "")


def test_another_leader_keeps_the_reference_and_finds_the_drift(observed: Observed, camera: Camera) -> None:
    served = observed.served
    reference = served.becomes(WATCHED, "Drifting", "False", "AsReference", LONG_S)["message"]
    stored, former = served.status(WATCHED)["drift"], leader(served)
    killed = ("delete", "pod", former, "--grace-period=0", "--force")
    served.cluster.kubectl("-n", served.operator.namespace, *killed)
    served.cluster.wait("another leader", lambda: leader(served) not in ("", former), LONG_S)
    passes = camera.answers + 50
    served.cluster.wait("it looks at answers", lambda: camera.answers > passes, LONG_S)
    kept = served.condition(WATCHED, "Drifting") or {}
    assert (kept["reason"], kept["message"]) == ("AsReference", reference)
    assert served.status(WATCHED)["drift"] == stored

    camera.brightness = 0.3
    said = served.becomes(WATCHED, "Drifting", "True", timeout_s=LONG_S)

    assert said["reason"] == "ImagesChanged"
    assert "brightness: PSI" in said["message"]
