"""A release is upgraded and rolled back under load, by Helm itself too, its servers replaced, the operator taken away.

The other images have the same content: nothing was released yet.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from cluster.images import FORMER_IMAGES
from fakes.callers import EIGHT, Load
from fakes.cases import cases
from fakes.cluster import Cluster, Json
from fakes.cluster_models import default_pool, model
from fakes.installed_operator import HELM, TRITON_VERSION, InstalledOperator, image_values, set_options
from fakes.served_namespace import MODEL, POOL, ServedNamespace
from fakes.waiting import HANG_S
from segserve_common.kube.names import COMPONENT_LABEL, POOL_LABEL, SERVER

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CHART: Final = Path(__file__).parents[3] / "charts/segserve"
MODELS: Final = ("coins", "coins-instances")
RELEASE: Final = "segserve"
STEPS_S: Final = 300.0
"""Two servers start and two end, one after the other."""
ATOMIC: Final = ("--atomic", "--timeout=60s")


@dataclass(frozen=True, slots=True)
class Installed:
    """A release of the chart in the namespace that it serves."""

    served: ServedNamespace
    home: Path

    def helm(self, verb: str, *arguments: str | Path) -> str:
        """Run Helm on the release; AssertionError with its words where it fails."""
        place = ("--kubeconfig", str(self.served.cluster.kubeconfig), "--namespace", self.served.name)
        waiting = () if verb == "test" else ("--wait", f"--timeout={HANG_S:g}s")
        command = [str(HELM), verb, RELEASE, *waiting, *map(str, arguments), *place]
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.served.story()}"
        return done.stdout

    def install(self, operator: str, server: str) -> None:
        """Install the chart with these images, and with it a pool of two servers and two gateways."""
        # Gateways are replaced with the operator: they let go of their callers, however slow those are.
        pool = default_pool(server={"drainSeconds": 5}, gateway={"drainSeconds": 30})
        file = self.home / "values.json"
        file.write_text(json.dumps({"pool": {"create": True, "spec": pool["spec"]}}))
        values = (
            f"watchNamespaces={{{self.served.name}}}",
            "crds.enabled=false",  # the cluster has them already, and other operators use them
            "operator.resources.requests.cpu=10m",
            "operator.resources.requests.memory=64Mi",
            *image_values("operator", operator),
            *image_values("server", server),
            *image_values("envoy", self.served.cluster.images.envoy),
        )
        version = ("--set-string", f"images.server.tritonVersion={TRITON_VERSION}")
        self.helm("install", CHART, "--values", file, *version, *set_options(values))

    def servers(self) -> list[tuple[str, int]]:
        """Return the uid of each server's pod, and how often its containers were started again."""
        labels = f"{POOL_LABEL}=default,{COMPONENT_LABEL}={SERVER}"
        pods = self.served.cluster.get(self.served.name, "pods", labels=labels)
        return sorted((pod["metadata"]["uid"], sum(_restarts(pod))) for pod in pods)

    def roles(self) -> dict[str, Json]:
        """Return what each model's roles are."""
        return {name: self.served.status(name)["roles"] for name in MODELS}

    def operator_image(self) -> str:
        """Return the image that the operator runs."""
        found = self.served.get("deployment", RELEASE)
        assert found is not None
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    def passes_go_by(self) -> None:
        """Return once the operator that runs now has looked at the pool a few times."""
        served = self.served
        served.cluster.wait("the former operator is gone", lambda: len(served.operator.pods()) == 1)
        served.cluster.wait("passes of the operator", lambda: served.operator.passes() > 2)


@pytest.fixture(scope="module")
def release(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The former release: its operator serves two models from two servers with its agents, by two gateways."""
    folder = tmp_path_factory.mktemp("release")
    with ExitStack() as stack:
        name = stack.enter_context(cluster.namespace("upgrade"))
        found = Installed(ServedNamespace(cluster, InstalledOperator(cluster, name), name), folder)
        server, operator = FORMER_IMAGES
        found.install(operator, server)
        found.served.apply(*(model(each, pool="default") for each in MODELS))
        found.served.wait_ready(*MODELS)
        yield found


@dataclass(frozen=True, slots=True)
class Seen:
    """What there was after a change of the release, and the failed requests until then."""

    operator: str
    servers: list[tuple[str, int]]
    roles: dict[str, Json]
    failures: list[str]


@pytest.fixture(scope="module")
def seen(release: Installed) -> dict[str, Seen]:
    """What was seen before and after an upgrade, a rollback and an upgrade again, under load; this release stays."""
    cluster = release.served.cluster
    present = (*image_values("operator", cluster.images.operator), *image_values("server", cluster.images.server))
    upgrade = ("upgrade", CHART, "--reuse-values", *set_options(present))
    found: dict[str, Seen] = {}
    with Load(release.served.url(), MODELS[0], 0.4, EIGHT) as load:
        for name, change in {
            "installed": (),
            "upgraded": upgrade,
            "rolled back": ("rollback", "1"),
            "upgraded again": upgrade,
        }.items():
            if change:
                release.helm(*change)
            release.passes_go_by()
            load.wait_for(release.served.stable(MODELS[0]), count=20)
            found[name] = Seen(release.operator_image(), release.servers(), release.roles(), list(load.failures))
    return found


def test_an_upgrade_and_its_rollback_fail_no_request_and_move_no_model_and_no_server(seen: dict[str, Seen]) -> None:
    before = seen["installed"]

    assert len(before.servers) == 2
    assert [each.operator.rpartition(":")[2] for each in seen.values()] == ["former", "test", "former", "test"]
    assert [each.servers for each in seen.values()] == [before.servers] * 4
    assert [each.roles for each in seen.values()] == [before.roles] * 4
    assert {name: each.failures for name, each in seen.items()} == {name: [] for name in seen}


@cases(
    "value",
    {
        "an image that is nowhere": "images.operator.tag=nowhere",
        "settings that the operator refuses": "artifacts.signatures.required=true",
        "a pool that the API server refuses": "pool.spec.gateway.port=0",
    },
)
def test_helm_takes_back_what_cannot_start_and_all_that_serves_stays(
    release: Installed, seen: dict[str, Seen], value: str
) -> None:
    served = release.served

    def found() -> tuple[Json, ...]:
        operators = [(pod["metadata"]["uid"], _restarts(pod)) for pod in served.operator.pods()]
        specs = [served.get(*each)["spec"] for each in (("deployment", RELEASE), (POOL, "default"))]
        return operators, release.servers(), release.roles(), specs

    before = found()
    with served.load(pause_s=0.4):
        with pytest.raises(AssertionError, match="has been rolled back due to atomic being set"):
            release.helm("upgrade", CHART, "--reuse-values", "--set", value, *ATOMIC)
        release.passes_go_by()
    assert found() == before


def test_servers_of_the_new_release_replace_the_former_ones_step_by_step_once_asked_for_and_no_request_fails(
    release: Installed, seen: dict[str, Seen]
) -> None:
    served = release.served
    former, stable = served.main(), {name: served.stable(name) for name in MODELS}
    available = served.cluster.wait_condition(served.name, POOL, "default", "UpdateAvailable")
    command = re.search(r"`kubectl (annotate [^`]*)`", available["message"])
    assert command is not None, available
    before = {uid for uid, _ in seen["installed"].servers}
    with served.load(pause_s=0.4):
        served.cluster.kubectl("-n", served.name, *command[1].split())
        served.cluster.wait("another main group", lambda: served.main() not in (former, ""), STEPS_S)
        main = served.main()
        served.cluster.wait("the former groups are gone", lambda: served.groups() == {main}, STEPS_S)
        # They have answered the last of their requests by then.
        served.cluster.wait("their pods are gone", lambda: not before & {uid for uid, _ in release.servers()}, STEPS_S)
        served.wait_ready(*MODELS)
    assert {name: served.role(name, "stable") for name in MODELS} == {name: (stable[name], main) for name in MODELS}


def test_what_serves_outlives_an_uninstalled_operator_and_is_found_by_the_next(
    release: Installed, seen: dict[str, Seen]
) -> None:
    served, cluster = release.served, release.served.cluster
    told = release.helm("test", "--logs")
    assert f"http://segserve-default.{served.name}.svc:8080/v2/health/ready: ok" in told
    serving = release.servers()

    release.helm("uninstall")
    assert served.get(POOL, "default")
    assert release.servers() == serving

    release.install(cluster.images.operator, cluster.images.server)
    served.delete(MODEL, MODELS[-1])
    assert release.servers() == serving

    served.delete(f"{MODEL},{POOL}", "--all")
    cluster.wait("nothing is left of the pool but pods that end", lambda: not staying(served))
    release.helm("uninstall")


def staying(served: ServedNamespace) -> list[str]:
    """Return what there is of the pool that is not about to end."""
    return [
        f"{each['kind']} {each['metadata']['name']}"
        for each in served.children()
        if "deletionTimestamp" not in each["metadata"]
    ]


def _restarts(pod: Json) -> list[int]:
    return [status["restartCount"] for status in pod["status"].get("containerStatuses", ())]
