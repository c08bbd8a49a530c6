"""The real cluster for tests: the one that is up, else one that is started for them and deleted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import kind
from fakes.artifact_server import ArtifactServer, artifact_server
from fakes.cluster import Cluster, running_cluster
from fakes.cluster_models import EXAMPLES, SERVED, default_pool, model, second_pool
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
    """A cluster with our images and custom resources; one that is up already is left up."""
    if reason := kind.unfit():
        pytest.skip(f"no cluster: {reason}")
    with running_cluster() as found:
        yield found


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
