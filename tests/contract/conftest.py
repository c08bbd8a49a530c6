"""The real API server of the contracts: that of the cluster that is up, else of one that is started for them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import kind
from fakes.kube_connection import client_of_file
from fakes.kube_servers import THINGS, FakeServer, RealServer, Server, things_crd
from fakes.mlflow_server import MlflowServer, mlflow_server
from fakes.waiting import connections_are_closed, eventually
from segserve_common.api_errors import UnavailableError
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.kinds import CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """The administrator's way in; a cluster that is up already is left up."""
    if reason := kind.unfit():
        pytest.skip(f"no real API server: {reason}")
    with kind.running():
        yield kind.KUBECONFIG


@pytest.fixture(scope="session")
def own_namespace(kubeconfig: Path) -> Iterator[str]:
    """A namespace, and a kind of our own, on the real cluster."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    with client_of_file(kubeconfig, name) as client:
        client.create(NAMESPACES, {"metadata": {"name": name}})
        client.apply(CUSTOM_RESOURCE_DEFINITIONS, things_crd())
        yield name
        client.delete(NAMESPACES, name)
        client.delete(CUSTOM_RESOURCE_DEFINITIONS, f"{THINGS.plural}.{THINGS.group}")


@pytest.fixture(params=["in memory", pytest.param("real", marks=pytest.mark.cluster)])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """An API server: each test meets both."""
    if request.param == "in memory":
        yield FakeServer()
        return
    namespace, kubeconfig = request.getfixturevalue("own_namespace"), request.getfixturevalue("kubeconfig")
    async with AsyncKubeClient.connect(kubeconfig) as api:

        async def is_served() -> bool:
            with suppress(UnavailableError):
                return await api.has(THINGS)
            return False

        await eventually(is_served, "our kind is served")
        with client_of_file(kubeconfig, namespace) as client:
            client.field_manager = "kubectl"
            yield RealServer(api, client, namespace)
    await connections_are_closed()


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server: it takes ten seconds to start."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def name() -> str:
    return f"it-{uuid.uuid4().hex[:8]}"
