"""Contour, an implementation of the Gateway API, leads callers to a pool by its routes, as how-to/integrate.md says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from PIL import Image

from bench.ports import free_port
from fakes.callers import PHOTO
from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.contour import MODULE, contour, leads_to_coins
from fakes.installed_operator import installed
from fakes.neighbours import definitions
from fakes.served_namespace import ServedNamespace
from fakes.waiting import HANG_S
from segserve_common.kube.names import COMPONENT_LABEL, SERVER, object_name

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(900)]

API = "gateway.networking.k8s.io/v1"
HOST, GRPC_HOST = "masks.example.com", "grpc.masks.example.com"
PORT_OFFSET = 8000
"""Contour's Envoy listens so much above a listener's port."""
TIMEOUT_S = 10


def test_callers_reach_a_pool_by_host_name_over_both_protocols(
    cluster: Cluster, namespace: str, built: Callable[..., Path], tmp_path: Path
) -> None:
    port = free_port()
    listener = {"name": "http", "protocol": "HTTP", "port": port - PORT_OFFSET}
    gateway: Json = {"gatewayClassName": "contour", "listeners": [listener]}
    parts = {
        "provider": "gatewayApi",
        "parentRefs": [{"name": "public", "sectionName": "http"}],
        "hostnames": [HOST],
        "grpcHostnames": [GRPC_HOST],
        "plainHttp": True,
        "requestTimeoutSeconds": TIMEOUT_S,
    }
    program, files = built("contour", f"{MODULE}/cmd/contour"), ("gateway/00-crds.yaml", "contour/01-crds.yaml")
    with ExitStack() as stack:
        examples = [f"examples/{file}" for file in files]
        stack.enter_context(definitions(cluster, "contour", MODULE, *examples, kinds="gateways,httproutes,grpcroutes"))
        operator = stack.enter_context(installed(cluster, [namespace]))
        served = ServedNamespace(cluster, operator, namespace)
        implementation = {"controllerName": "projectcontour.io/gateway-controller"}
        served.apply(
            {"apiVersion": API, "kind": "GatewayClass", "metadata": {"name": "contour"}, "spec": implementation},
            {"apiVersion": API, "kind": "Gateway", "metadata": {"name": "public"}, "spec": gateway},
            pool(gateway=parts),
            model(),
        )
        served.wait_ready("coins")
        first = stack.enter_context(ExitStack())
        config: Json = {"gateway": {"gatewayRef": {"name": "public", "namespace": namespace}}}
        answers = partial(leads_to_coins, f"http://127.0.0.1:{port}", HOST)
        first.enter_context(contour(program, cluster, tmp_path / "first", answers, config))
        name = object_name("default")
        for route in (("httproute", name), ("grpcroute", f"{name}-grpc")):
            found = cluster.wait(f"{route} has been judged", partial(conditions, served, *route))
            assert found == {"Accepted": "True", "ResolvedRefs": "True"}

        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"host": HOST}, timeout=HANG_S) as client:
            assert area(segment(client, PHOTO)) == area_by_grpc(port, PHOTO) > 0
            answered = infer(client, image := large())
            assert answered.status_code == 200, answered.text
            assert area_by_grpc(port, image) >= 0

            with served.load():  # callers within the cluster do not pass Contour
                first.close()
                stack.enter_context(contour(program, cluster, tmp_path / "second", answers, config))
            assert area(segment(client, PHOTO)) == area_by_grpc(port, PHOTO) > 0

            for pod in cluster.pods(namespace, f"{COMPONENT_LABEL}={SERVER}"):
                cluster.kill(namespace, pod["metadata"]["name"], "triton", running="tritonserver", signal="STOP")
            late = segment(client, PHOTO)
            assert (late.status_code, late.headers["content-type"]) == (504, "application/problem+json"), late.text


def conditions(served: ServedNamespace, kind: str, name: str) -> dict[str, str]:
    """Return the conditions that the implementation has set at the pool's route."""
    parents = (served.get(kind, name) or {}).get("status", {}).get("parents", ())
    return {each["type"]: each["status"] for parent in parents for each in parent["conditions"]}


def segment(client: httpx.Client, image: bytes) -> httpx.Response:
    return client.post("/v1/models/coins:segment", content=image, headers={"content-type": "image/png"})


def infer(client: httpx.Client, image: bytes) -> httpx.Response:
    """Send an image in the protocol of KServe, in its binary form."""
    size = {"binary_data_size": len(image) + 4}
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "parameters": size}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "AREAS"}]}).encode()
    body = head + len(image).to_bytes(4, "little") + image
    headers = {"inference-header-content-length": str(len(head))}
    return client.post("/v2/models/coins/infer", content=body, headers=headers)


def area(response: httpx.Response) -> int:
    """Return the pixels of coins."""
    (coin,) = (each for each in response.json()["classes"] if each["class"] == "coin")
    return int(coin["area"])


def area_by_grpc(port: int, image: bytes) -> int:
    tensor = tritonclient.grpc.InferInput("IMAGE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], dtype=object))
    areas = tritonclient.grpc.InferRequestedOutput("AREAS")
    authority = [("grpc.default_authority", GRPC_HOST)]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}", channel_args=authority) as client:
        return int(client.infer("coins", [tensor], outputs=[areas], client_timeout=HANG_S).as_numpy("AREAS")[1])


def large() -> bytes:
    """Return an image of 20 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (2600, 2600, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()
