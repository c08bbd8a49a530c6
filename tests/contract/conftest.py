"""The real API server of the contracts: the one that a kubeconfig names, else one that is started for them."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lightkube import AsyncClient, Client, KubeConfig
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.core_v1 import Namespace

from cluster.node import default_node, unfit
from fakes.kube_servers import THINGS, FakeServer, RealServer, Server, things_crd
from fakes.mlflow_server import MlflowServer, mlflow_server
from fakes.waiting import connections_are_closed, eventually
from segserve_common.kube.errors import UnavailableError
from segserve_operator.adapters.kube.lightkube_api import LightkubeApi


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """The administrator's way in; a cluster that runs already is left running."""
    named = os.environ.get("SEGSERVE_TEST_KUBECONFIG") or os.environ.get("KUBECONFIG")
    node = default_node()
    if named:
        yield Path(named)
    elif reason := unfit():
        pytest.skip(f"no real API server: {reason}; SEGSERVE_TEST_KUBECONFIG=FILE names one to use (make e2e-kind)")
    elif node.is_up:
        yield node.kubeconfig
    else:
        node.start()
        yield node.kubeconfig
        node.stop()


@pytest.fixture(scope="session")
def own_namespace(kubeconfig: Path) -> Iterator[str]:
    """A namespace, and a kind of our own, on the real cluster."""
    client = Client(KubeConfig.from_file(kubeconfig))
    name = f"contract-{uuid.uuid4().hex[:8]}"
    client.create(Namespace(metadata=ObjectMeta(name=name)))
    client.apply(things_crd(), field_manager="contract")
    yield name
    client.delete(Namespace, name)
    client.delete(CustomResourceDefinition, f"{THINGS.plural}.{THINGS.group}")
    client.close()


@pytest.fixture(params=["in memory", pytest.param("real", marks=pytest.mark.cluster)])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """An API server: each test meets both."""
    if request.param == "in memory":
        yield FakeServer()
        return
    namespace, kubeconfig = request.getfixturevalue("own_namespace"), request.getfixturevalue("kubeconfig")
    async with LightkubeApi.connect(kubeconfig) as api:

        async def is_served() -> bool:
            with suppress(UnavailableError):
                return await api.has(THINGS)
            return False

        await eventually(is_served, "our kind is served")
        client = AsyncClient(KubeConfig.from_file(kubeconfig))
        yield RealServer(api, client, namespace)
        await client.close()
    await connections_are_closed()


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server: it takes ten seconds to start."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def name() -> str:
    return f"it-{uuid.uuid4().hex[:8]}"
