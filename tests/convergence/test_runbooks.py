"""Runbooks followed: a system breaks, its alert fires, the page's commands show why, what it says to do ends it."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
import trustme
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.ports import free_port
from charts.monitoring.rules import ALERTS
from convergence.test_drift import DRIFT, SERVERS, Camera, watched
from fakes.cluster_world import DEFAULTS, KEY, NAMESPACE, Json, model_manifest
from fakes.counting_gateways import count_requests
from fakes.issued import issued
from fakes.kube_faults import Fault
from fakes.kube_web import api_server
from fakes.monitored_world import OPERATOR, MonitoredWorld, Scrapes, Target, samples_of
from fakes.mounted_secret import MountedSecret
from fakes.pipelines import pipeline_of
from fakes.waiting import HANG_S
from segserve_builder.spec.model_spec import ModelMetrics
from segserve_builder.steps.answer_metrics import AnswerContents, AnswerMetrics
from segserve_builder.values import ImageStatistics, ResizeTransform
from segserve_common.api_errors import ForbiddenError, UnavailableError
from segserve_common.kube.kinds import DEPLOYMENTS, MODELS, PODS, SECRETS
from segserve_common.kube.names import GATEWAY, object_name
from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.core.rollout.counters import Counters
from segserve_operator.gateway_sync.settings import GatewaySettings, Settings
from segserve_operator.gateway_sync.sidecar import Sidecar
from tools import ROOT

PAGE: Final = (ROOT / "docs/how-to/alerts.md").read_text()
SECRET: Final = "coins-tls"
QUOTA: Final = "exceeded quota: objects, requested: count/deployments.apps=1, used: 9, limited: 9"
CLASSES: Final = [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}, {"id": 2, "name": "button"}]
PIPELINE: Final = pipeline_of(classes=CLASSES)
IMAGE: Final = ImageStatistics(brightness=0.25, contrast=0.55, detail=0.01, vertical_gradients=0.5, top_brightness=0.5)
_COMMAND: Final = re.compile(r"(?:^\$ |`)((?:segserve|kubectl) [^`\n]+)", re.MULTILINE)


@dataclass
class Incident:
    """A broken system, and the page of its alert."""

    world: MonitoredWorld
    kubeconfig: Path
    section: str
    patched: pytest.MonkeyPatch
    ends: AsyncExitStack
    camera: Camera | None = None
    gateway: Gateway | None = None

    @property
    def phase(self) -> str:
        """The phase of the rollout."""
        return str(self.world.status("coins")["rollout"]["phase"])

    def commands(self, part: str) -> list[str]:
        """Return the commands of a part of the page, in its order."""
        text = self.section.partition(f"**{part}.**")[2].partition("\n**")[0]
        commands = (command.replace("SECRET", SECRET) for command in _COMMAND.findall(text))
        return [command.replace("NAME", KEY.pool if "tpool" in command else "coins") for command in commands]

    async def see(self) -> str:
        """Run the commands by which the page shows the cause, and return what they print."""
        printed = [await self.world.run(command, self.kubeconfig) for command in self.commands("See")]
        return "\n".join(printed)

    async def do(self, command: str) -> str:
        """Run a command that the page gives to end it."""
        assert command in self.commands("Do"), self.section
        return await self.world.run(command, self.kubeconfig)

    async def apply(self, manifest: Json) -> None:
        """Apply a resource."""
        file = self.kubeconfig.parent / "applied.yaml"
        file.write_text(yaml.safe_dump(manifest))
        printed = await self.world.run(f"segserve apply -f {file}", self.kubeconfig)
        assert "error" not in printed, printed


@dataclass(frozen=True)
class Followed:
    """How a system breaks, what the page's commands show then, and what is done."""

    breaks: Callable[[Incident], Awaitable[None]]
    shows: tuple[str, ...]
    mend: Callable[[Incident], Awaitable[None]]
    before: Callable[[Incident], Awaitable[None]] | None = None
    minutes: int = 30
    """Longer than the alert waits, and than it looks back."""


async def quota_is_used_up(incident: Incident) -> None:
    error = ForbiddenError(QUOTA, status=403)
    incident.world.faults.add(Fault(lambda: error, verb="write", kind=DEPLOYMENTS, times=None))
    await incident.apply(model_manifest("coins", "2"))


async def api_server_is_away(incident: Incident) -> None:
    incident.world.faults.add(Fault(lambda: UnavailableError("connection refused"), times=None))
    await incident.apply(model_manifest("coins", "2"))


async def api_is_well(incident: Incident) -> None:
    incident.world.faults.heal()


async def image_is_gone(incident: Incident) -> None:
    incident.world.unpullable.add(DEFAULTS.envoy_image)
    evict_gateways(incident)


async def image_is_back(incident: Incident) -> None:
    incident.world.unpullable.clear()
    evict_gateways(incident)


def evict_gateways(incident: Incident) -> None:
    name = object_name(KEY.pool, GATEWAY)
    gateway = incident.world.kube.peek(DEPLOYMENTS, NAMESPACE, name)
    for index in range(gateway["spec"]["replicas"]):
        incident.world.evict(name, index)


async def operator_is_deleted(incident: Incident) -> None:
    incident.world.is_down = True
    incident.world.kube.vanish(PODS, "vision", OPERATOR)


async def operator_is_back(incident: Incident) -> None:
    incident.world.start()


async def is_watched(incident: Incident) -> None:
    incident.world.apply_pool(replicas=SERVERS)
    incident.camera = await watched(incident.world)


async def images_are_dark(incident: Incident) -> None:
    await incident.camera.film(20, brightness=0.15)


async def dark_from_now_on(incident: Incident) -> None:
    since = datetime.fromtimestamp(incident.world.now_s, UTC).isoformat()
    window = {"duration": "30m", "start": since}
    await incident.apply(model_manifest("coins", drift={**DRIFT, "reference": {"window": window}}))
    await incident.camera.film(50, brightness=0.15)


async def former_again(incident: Incident) -> None:
    await incident.apply(model_manifest("coins"))


def rolled_out(network: str) -> Json:
    policy = {"steps": [{"weight": 50, "pause": True}], "bakeTime": "1m", "deadline": "10h"}
    return model_manifest("coins", network, rollout=policy)


async def in_rollout(incident: Incident) -> None:
    count_requests(incident.world, incident.patched)
    await incident.apply(rolled_out("1"))
    await incident.world.turns(20)
    await begin_rollout(incident)


async def begin_rollout(incident: Incident) -> None:
    await incident.apply(rolled_out("2"))
    await incident.world.turns(90)
    assert incident.phase == "Progressing"


async def gateways_do_not_answer(incident: Incident) -> None:
    async def nothing(*_: object) -> dict[str, Counters]:
        return {}

    incident.patched.undo()
    incident.patched.setattr(wire, "fetch_counts", nothing)


async def gateways_answer(incident: Incident) -> None:
    count_requests(incident.world, incident.patched)


async def paused(incident: Incident) -> None:
    await incident.world.run("segserve rollout pause coins", incident.kubeconfig)


async def aborted(incident: Incident) -> None:
    await incident.world.run("segserve rollout abort coins", incident.kubeconfig)


async def abort(incident: Incident) -> None:
    await incident.do("segserve rollout abort coins")


async def promote(incident: Incident) -> None:
    await incident.world.run("segserve rollout promote coins", incident.kubeconfig)


async def nothing_is_done(_: Incident) -> None:
    pass


async def artifact_is_another(incident: Incident) -> None:
    incident.world.verdicts["2"] = "DigestMismatch"
    incident.world.delete(MODELS, "coins")
    await incident.world.turns(20)
    await incident.apply(model_manifest("coins", "2"))


def count_answers(incident: Incident, found: Mapping[str, Sequence[int]]) -> None:
    """Let servers answer 40 images before each scrape; `found` are the classes that a network finds in each."""
    metrics = {network: AnswerMetrics(PIPELINE, ModelMetrics()) for network in found}
    totals: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def scraped() -> Target:
        model = incident.world.kube.peek(MODELS, NAMESPACE, "coins")
        network = Path(model["spec"]["artifact"]["uri"]).stem
        classes = np.array(found[network])
        contents = AnswerContents(len(classes) < 2, classes, np.full(len(classes), 0.9))
        for _ in range(40):
            metrics[network].count_contents(contents, ResizeTransform.of(40, 60), IMAGE)
        for each in metrics[network].take():
            totals[each.name, tuple({**each.labels, "model": "coins", "revision": network}.items())] += each.amount
        samples = [Sample(name, dict(labels), value) for (name, labels), value in totals.items()]
        return samples, {"namespace": NAMESPACE, "pool": KEY.pool, "pod": "server-0"}

    incident.world.others.append(scraped)


async def scraped_slowly(incident: Incident) -> None:
    incident.world.scrapes = Scrapes(every_s=300)
    incident.world.began_s = incident.world.now_s
    await incident.world.minutes(5)


async def answered(incident: Incident) -> None:
    """Let callers have answers for a day: the second network finds background alone, the third buttons for coins."""
    await scraped_slowly(incident)
    count_answers(incident, {"1": (0, 1), "2": (0,), "3": (0, 2)})
    await incident.world.minutes(26 * 60)


async def revision_finds_nothing(incident: Incident) -> None:
    await incident.apply(model_manifest("coins", "2"))


async def revision_finds_another_class(incident: Incident) -> None:
    await incident.apply(model_manifest("coins", "3"))


class Gateway:
    """The sidecar of a gateway whose Secret the kubelet mounts, beside no Envoy."""

    def __init__(self, incident: Incident, **options: Any) -> None:
        folder = incident.kubeconfig.parent
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self._incident = incident
        self._mounted = MountedSecret(folder / "secret")
        gateway = {"port": free_port(), "maxRequestBytes": 2**21, "requestTimeoutSeconds": 60, "syncPort": free_port()}
        told = GatewaySettings.model_validate({**gateway, **options})
        (folder / "gw").mkdir()
        api: Any = None
        self.sidecar = Sidecar(Settings("gateway-0", "1", NAMESPACE, KEY.pool, told, folder / "gw"), api)
        self._samples: list[Sample] = []
        self.sidecar.probes.start()
        incident.ends.push_async_callback(asyncio.to_thread, self.sidecar.probes.stop)
        incident.world.others.append(self._scraped)

    def _scraped(self) -> Target:
        return self._samples, {"namespace": NAMESPACE, "pool": KEY.pool, "pod": "gateway-0"}

    async def _pass(self) -> None:
        with suppress(EnvoyUnreachableError):
            await self.sidecar.follower.one_pass()
        async with httpx.AsyncClient(trust_env=False, timeout=HANG_S) as client:
            metrics = await client.get(f"http://127.0.0.1:{self.sidecar.probes.port}/metrics")
        self._samples = [*samples_of(text_string_to_metric_families(metrics.text))]

    async def take(self, lasts: timedelta) -> None:
        """Let the Secret have another certificate, as the kubelet and the sidecar see it a minute later."""
        certificate, key = issued(self._authority, dns="example.org", lasts=lasts)
        content = {"tls.crt": certificate, "tls.key": key, "ca.crt": self._authority.cert_pem.bytes()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}}
        data = {name: base64.b64encode(each).decode() for name, each in content.items()}
        kube = self._incident.world.kube
        if kube.peek(SECRETS, NAMESPACE, SECRET) is None:
            kube.put(SECRETS, {**secret, "data": data})
        kube.edit(SECRETS, NAMESPACE, SECRET, {"data": data})
        self._mounted.write(content)
        await self._pass()


async def has_certificate(incident: Incident) -> None:
    incident.world.apply_pool(gateway={"tls": {"secretName": SECRET}})
    tls = {"publicPort": 443, "certificate": str(incident.kubeconfig.parent / "secret")}
    incident.gateway = Gateway(incident, tls=tls)
    await incident.gateway.take(timedelta(days=90))
    await incident.world.minutes(5)


async def certificate_expires(incident: Incident) -> None:
    await incident.gateway.take(timedelta(days=6))


async def renewed(incident: Incident) -> None:
    await incident.gateway.take(timedelta(days=90))


async def classes_are_many(incident: Incident) -> None:
    """Let two models have long names of classes that hardly compress, so that few of them make a large assignment."""
    draw = random.Random(1)
    for model in ("maps", "roads"):  # of one part of the assignment
        names = ["".join(chr(draw.randrange(0x4E00, 0x9FFF)) for _ in range(100)) for _ in range(1500)]
        classes = [{"id": number, "name": name} for number, name in enumerate(names)]
        incident.world.apply(model_manifest(model, "2", classes=classes))


async def models_are_fewer(incident: Incident) -> None:
    await incident.world.run("segserve delete roads", incident.kubeconfig)


async def counted(incident: Incident) -> None:
    count_requests(incident.world, incident.patched)
    await incident.apply(rolled_out("1"))
    await incident.world.turns(20)


CASES: Final[Mapping[str, Followed]] = {
    "SegserveModelNotReady": Followed(artifact_is_another, ("DigestMismatch",), former_again),
    "SegserveEffectsFailing": Followed(quota_is_used_up, (QUOTA,), api_is_well),
    "SegserveReconcileErrors": Followed(api_server_is_away, ("connection refused",), api_is_well),
    "SegservePoolDegraded": Followed(image_is_gone, ("default   False", "ImagePullBackOff"), image_is_back),
    "SegserveOperatorNotReconciling": Followed(operator_is_deleted, ("No resources found",), operator_is_back),
    "SegserveDrifting": Followed(images_are_dark, ("brightness", "ImagesChanged"), dark_from_now_on, is_watched, 2),
    "SegserveRolloutBlind": Followed(
        gateways_do_not_answer, ("gateway-0 reports no counts",), gateways_answer, in_rollout, 3
    ),
    "SegserveRolloutHeld": Followed(paused, ("as it is paused",), abort, in_rollout, 60),
    "SegserveRolloutRolledBack": Followed(aborted, ("a person aborted it",), nothing_is_done, in_rollout, 10),
    "SegserveRolloutRunning": Followed(begin_rollout, (), promote, counted, 5),
    "SegserveAnswersEmpty": Followed(revision_finds_nothing, ("is stable",), former_again, answered, 240),
    "SegserveClassGone": Followed(revision_finds_another_class, ("is stable",), former_again, answered, 240),
    "SegserveStoredObjectLarge": Followed(classes_are_many, ("maps", "roads"), models_are_fewer, scraped_slowly, 60),
    "SegserveCertificateExpires": Followed(certificate_expires, ("notAfter=",), renewed, has_certificate, 90),
}


NOT_FOLLOWED: Final[Mapping[str, str]] = {
    "SegserveSloBurn": "it needs callers of a real Envoy; by hand",
    "SegserveGatewayErrors": "it needs callers of a real Envoy; by hand",
    "SegserveGatewayStale": "it needs an Envoy that refuses a plan",
    "SegserveServerNotReady": "it needs a Triton that hangs; by hand",
    "SegserveGpuMemoryHigh": "it needs a GPU",
}
"""Alerts whose page no test follows, and why. This list shrinks."""


@asynccontextmanager
async def incident_of(alert: str, folder: Path) -> AsyncIterator[Incident]:
    section = PAGE.partition(f"### {alert}\n")[2].partition("\n##")[0]
    world = MonitoredWorld(now_s=time.time())
    handler = logging.Handler()
    handler.emit = lambda record: world.lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("segserve").addHandler(handler)
    try:
        async with api_server(world, folder, world.logs) as kubeconfig, AsyncExitStack() as ends:
            world.apply_pool()
            world.apply(model_manifest("coins"))
            await world.minutes(10)
            assert world.condition("coins", "Ready")[0] == "True"
            with pytest.MonkeyPatch.context() as patched:
                yield Incident(world, kubeconfig, section, patched, ends)
    finally:
        logging.getLogger("segserve").removeHandler(handler)
        await world.passes.close()


@pytest.mark.needs("promtool")
@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("alert", CASES)
async def test_a_runbook_is_followed_on_the_broken_system_and_its_alert_ends(
    alert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = CASES[alert]
    for name in ("SEGSERVE_STATE", "SEGSERVE_URL", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"KUBECONFIG": tmp_path / "kubeconfig", "HOME": tmp_path, "COLUMNS": 300, "NO_COLOR": 1}.items():
        monkeypatch.setenv(name, str(value))
    async with incident_of(alert, tmp_path) as incident:
        world = incident.world
        if followed.before is not None:
            await followed.before(incident)
        seen = [(world.scrapes.count - 1, alert, False)]
        await followed.breaks(incident)
        await world.minutes(followed.minutes)
        seen.append((world.scrapes.count - 1, alert, True))
        printed = await incident.see()
        await followed.mend(incident)
        await world.minutes(followed.minutes)
        seen.append((world.scrapes.count - 1, alert, False))

    assert [each for each in followed.shows if each not in printed] == [], printed
    world.scrapes.check(seen, tmp_path / "rules_test.json")


def test_each_alert_has_a_runbook_that_is_followed_or_a_reason() -> None:
    alerts = {alert.name for alert in ALERTS}

    assert CASES.keys() & NOT_FOLLOWED.keys() == set()
    assert CASES.keys() | NOT_FOLLOWED.keys() == alerts == set(re.findall(r"^### (Segserve\w+)$", PAGE, re.MULTILINE))
