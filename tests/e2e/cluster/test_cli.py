"""The command line on a real cluster: what a user types, what is printed, and what is there afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster import kind
from fakes.callers import COIN_PIXELS
from fakes.cluster import Cluster
from fakes.served_namespace import ServedNamespace
from fakes.terminal import Terminal
from fakes.waiting import HANG_S
from segserve import Client, platform
from segserve_common.kube.kinds import SERVICES
from segserve_common.kube.names import FINALIZER, object_name
from segserve_platform.platforms.cluster.gateway import forwarded
from segserve_platform.platforms.cluster.platform import ClusterPlatform

pytestmark = pytest.mark.cluster

EXAMPLE = Path(__file__).parents[3] / "examples/coins"
NAMES = ["coins", "coins-instances", "coins-twostage"]


@pytest.fixture
def shell(cluster: Cluster, namespace: str) -> Terminal:
    """A namespace that no operator works in."""
    return Terminal(cluster, namespace)


@pytest.fixture
def served_shell(served: ServedNamespace) -> Terminal:
    return Terminal(served.cluster, served.name)


def test_a_model_without_an_operator_is_deleted_once_its_finalizer_is_removed(shell: Terminal) -> None:
    def finalizers(value: list[str] | None) -> None:
        patch = json.dumps({"metadata": {"finalizers": value}})
        shell.cluster.kubectl("-n", shell.namespace, "patch", "segm", "coins", "--type=merge", "-p", patch)

    shell("apply", "-f", EXAMPLE / "model.yaml")
    finalizers([FINALIZER])

    held = shell("delete", "coins", "--timeout", "1s")
    finalizers(None)

    assert (held.returncode, held.stdout) == (1, "segmentationmodel/coins deleted\n")
    assert "coins still exists after 1s" in held.stderr
    assert shell("wait", "coins", "--for", "delete", "--timeout", f"{HANG_S:g}s").returncode == 0
    assert [one["metadata"]["name"] for one in shell.cluster.get(shell.namespace, "segm")] == NAMES[1:]


def test_a_model_that_serves_is_shown_described_waited_for_and_asked(served_shell: Terminal) -> None:
    waited = served_shell("wait", "coins")
    table = served_shell("get")
    described = served_shell("describe", "coins").stdout
    predicted = served_shell("predict", "coins", EXAMPLE / "coins.png")

    assert waited.returncode == 0, waited.stderr
    assert re.search(r"coins +True +coins-[0-9a-f]{10} ", table.stdout)
    assert "\x1b" not in table.stdout
    assert re.search(r"stable +coins-[0-9a-f]{10} in group main", described)
    assert re.search(r"events:\n(?s:.*)pods:\n  stable +segserve-default--main-\S+ +ready", described)
    assert predicted.returncode == 0, predicted.stderr
    assert re.search(r"coin +│ +39,\d{3} ", predicted.stdout)


def test_models_are_watched_with_their_addresses_in_a_pipe(served_shell: Terminal, tmp_path: Path) -> None:
    shown = r"^coins +True +coins-[0-9a-f]{10} +100 +http://segserve-default\.\S+/v2/models/coins "

    printed = served_shell.watch("get", "-w", pattern=rf"(?s){shown}.*{shown}", folder=tmp_path)

    assert "\x1b" not in printed


def test_doctor_finds_nothing_and_the_kubectl_plugin_is_the_same_command(served_shell: Terminal) -> None:
    doctor = served_shell("doctor")
    plugin = served_shell("get", "-o", "json", program=(str(kind.KUBECTL), "segserve"))

    assert doctor.returncode == 0, doctor.stdout
    assert re.search(r"^ok  operator: deployment/\S+ in \S+, 1 of 1 ready", doctor.stdout, re.MULTILINE)
    assert {one["metadata"]["name"] for one in json.loads(plugin.stdout)} >= set(NAMES)


def test_a_port_is_forwarded_where_the_service_cannot_be_reached(
    served: ServedNamespace, served_shell: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "HOME"):
        monkeypatch.setenv(name, served_shell.environment[name])
    options = ["--kubeconfig", str(served.cluster.kubeconfig), "--namespace", served.name]
    here = ClusterPlatform.connect(platform.Cluster(kubeconfig=served.cluster.kubeconfig, namespace=served.name))
    with here.client as api:
        service = api.get(SERVICES, object_name("default"))

        with forwarded(api, service, options) as url, Client(url) as client:
            assert url.startswith("http://127.0.0.1:")
            assert client.segment(EXAMPLE / "coins.png", model="coins").areas["coin"] in COIN_PIXELS
