"""The real cluster for tests: the one that KUBECONFIG names, else one that is started for them and ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.images import ENVOY_IMAGE, OPERATOR_IMAGE, SERVER_IMAGE, images
from cluster.node import Node, default_node, start_crd_server, unfit
from fakes.artifact_server import ArtifactServer, artifact_server
from fakes.cluster import Cluster, ImageNames
from fakes.cluster_models import EXAMPLES, SERVED, default_pool, model, second_pool
from fakes.crd_api import CrdApi
from fakes.installed_operator import installed
from fakes.served_namespace import ServedNamespace

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember failures, for what is told of a namespace when it goes."""
    report = yield
    item.stash[_FAILED] = report.failed or item.stash.get(_FAILED, False)
    used = getattr(item, "funcargs", {}).values()
    served = next((each for each in used if isinstance(each, ServedNamespace)), None)
    if report.failed and served is not None:
        crash = report.longreprtext.splitlines()[-12:]  # again below the story, which is long: ends of logs are kept
        report.sections.append((f"namespace {served.name}", "\n".join([served.story(), *crash])))
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with our images and custom resources; one that runs already is left running."""
    named = os.environ.get("SEGSERVE_TEST_KUBECONFIG") or os.environ.get("KUBECONFIG")
    node = default_node()
    with ExitStack() as stack:
        ours = not named or Path(named) == node.kubeconfig
        usable = _own(node, stack) if ours else _somebody_elses(Path(named or ""))
        stack.callback(usable.close)
        usable.install_crds()
        yield usable


@pytest.fixture
def namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Make namespaces of the test's own; of a test that fails they tell what is in them before they go."""
    with ExitStack() as stack:
        made: list[str] = []

        def make() -> str:
            made.append(stack.enter_context(cluster.namespace()))
            return made[-1]

        yield make
        if request.node.stash.get(_FAILED, False):
            for name in made:
                print(f"==== namespace {name}\n{cluster.story(name)}")


@pytest.fixture
def namespace(namespaces: Callable[[], str]) -> str:
    """A namespace of the test's own."""
    return namespaces()


@pytest.fixture
def artifacts(cluster: Cluster, tmp_path: Path) -> Iterator[ArtifactServer]:
    """An HTTP server that pods reach; it serves an empty folder of the test's own."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    with artifact_server("0.0.0.0", folder, advertised=cluster.host) as server:
        yield server


@pytest.fixture(scope="session")
def served(cluster: Cluster) -> Iterator[ServedNamespace]:
    """Two pools and five models that an operator, installed by Helm, serves; tests leave them as they are."""
    with ExitStack() as stack:
        name = stack.enter_context(cluster.namespace("served"))
        zoo = stack.enter_context(artifact_server("0.0.0.0", EXAMPLES / "zoo", advertised=cluster.host))
        operator = stack.enter_context(installed(cluster, [name]))
        found = ServedNamespace(cluster, operator, name)
        found.apply(default_pool(), second_pool(zoo.url), *(model(each, pool=of) for each, of in SERVED.items()))
        found.wait_ready(*SERVED)
        yield found


@pytest.fixture(scope="session")
def crd_server(cluster: Cluster) -> Iterator[CrdApi]:
    """A current API server for custom resources: one beside our cluster, or the named one where that is for tests."""
    if cluster.node is None and not os.environ.get("SEGSERVE_TEST_THROWAWAY"):
        pytest.skip("custom resources would be removed with all objects: SEGSERVE_TEST_THROWAWAY=1 allows that")
    with ExitStack() as stack:
        kubeconfig = cluster.kubeconfig
        if cluster.node is not None:
            server = start_crd_server(cluster.node)
            stack.callback(server.stop)
            kubeconfig = server.kubeconfig
        api = CrdApi(kubeconfig)
        stack.callback(api.close)
        yield api


def _own(node: Node, stack: ExitStack) -> Cluster:
    """Return our cluster, started where it is not up, and then ended with the stack."""
    if reason := unfit():
        pytest.skip(f"no cluster: {reason}; SEGSERVE_TEST_KUBECONFIG=FILE names one to use (make e2e-kind)")
    if not node.is_up:
        stack.callback(node.stop)
        node.start()
    node.load(images())
    names = ImageNames(SERVER_IMAGE, OPERATOR_IMAGE, ENVOY_IMAGE)
    return Cluster(node.kubeconfig, node.kubectl, names, os.environ.get("KT_HOST_IP", "172.31.240.1"), node)


def _somebody_elses(kubeconfig: Path) -> Cluster:
    """Return a named cluster; it has to know our images (`make e2e-kind` sees to it), or those that are named."""
    names = ImageNames(
        os.environ.get("SEGSERVE_TEST_SERVER_IMAGE", SERVER_IMAGE),
        os.environ.get("SEGSERVE_TEST_OPERATOR_IMAGE", OPERATOR_IMAGE),
        os.environ.get("SEGSERVE_TEST_ENVOY_IMAGE", ENVOY_IMAGE),
    )
    return Cluster(kubeconfig, "kubectl", names, os.environ.get("SEGSERVE_TEST_HOST", "host.docker.internal"))
