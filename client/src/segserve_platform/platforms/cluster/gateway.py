"""Connection from this machine to a pool's gateway, through its Service or else a port-forward."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import ssl
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from segserve.calls.credentials import CA_VARIABLE
from segserve_common.kube.kinds import NODES, SERVICES
from segserve_common.kube.names import object_name
from segserve_platform.platforms.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_platform.platforms.cluster.context_client import ContextClient
    from segserve_platform.platforms.port import Json

REACH_S: Final = 1.0
FORWARD_S: Final = 15.0
LOCAL_PORT: Final = 8080
_FORWARDED: Final = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


@contextmanager
def gateway(client: ContextClient, pool: str, kubectl_options: list[str]) -> Iterator[str]:
    """Make a pool's gateway reachable for the duration of the block, and yield its URL."""
    service = client.get(SERVICES, object_name(pool))
    for url in addresses(client, service):
        if answers(url):
            yield url
            return
    if _scheme(service["spec"]["ports"][0]) == "https":
        raise ControlError(
            f"the gateway of pool {pool!r} speaks TLS, and has a certificate for none of its addresses that can be "
            f"reached from here: name it as its certificate does, with --url https://..., and if the authority is "
            f"private, that with {CA_VARIABLE}"
        )
    with forwarded(client, service, kubectl_options) as url:
        yield url


def addresses(client: ContextClient, service: Json) -> Iterator[str]:
    """Yield the URLs at which a Service may be reachable, the likeliest first."""
    spec, port = service["spec"], service["spec"]["ports"][0]
    for ingress in (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or ():
        yield _url(ingress.get("ip") or ingress["hostname"], port["port"], _scheme(port))
    if spec.get("clusterIP") not in (None, "", "None"):
        yield _url(spec["clusterIP"], port["port"], _scheme(port))
    if port.get("nodePort"):
        for address in _node_addresses(client):
            yield _url(address, port["nodePort"], _scheme(port))


def _node_addresses(client: ContextClient) -> list[str]:
    try:
        nodes, _ = client.list(NODES, everywhere=True)
    except ControlError:
        return []  # few users may list nodes
    node_addresses = [address for node in nodes for address in node.get("status", {}).get("addresses", ())]
    kinds = ("ExternalIP", "InternalIP")
    return [address["address"] for kind in kinds for address in node_addresses if address["type"] == kind][:3]


def _scheme(port: Json) -> str:
    return "https" if port.get("appProtocol") == "https" else "http"


def _url(host: str, port: int, scheme: str) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def answers(url: str) -> bool:
    """Return whether a pool's gateway answers at this URL."""
    import httpx  # slow to import, and only this needs it

    # Another network may have the same addresses, so any answer is not enough.
    try:
        authorities = os.environ.get(CA_VARIABLE)
        verify = ssl.create_default_context(cafile=authorities) if authorities else True
        body: Any = httpx.get(f"{url}/v2", timeout=REACH_S, trust_env=False, verify=verify).json()
    except (httpx.HTTPError, ValueError, OSError):
        return False
    return isinstance(body, dict) and bool({"name", "error"} & body.keys())


@contextmanager
def forwarded(client: ContextClient, service: Json, kubectl_options: list[str]) -> Iterator[str]:
    """Forward a free port of this machine to a Service for the duration of the block, and yield its URL."""
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    advice = f", then SEGSERVE_URL=http://127.0.0.1:{LOCAL_PORT} names it"
    with forwarded_port(client, f"service/{name}", port, kubectl_options, advice) as url:
        yield url


@contextmanager
def forwarded_port(
    client: ContextClient, target: str, port: int, kubectl_options: list[str], advice: str = ""
) -> Iterator[str]:
    """Forward a free port of this machine to one of a `service/NAME` or `pod/NAME` for the duration of the block.

    Yields the URL. `advice` continues the message to the user of a machine without kubectl.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ControlError(
            f"{target} of namespace {client.namespace!r} cannot be reached from here, and there is no kubectl "
            f"to forward a port with; where there is one, run `kubectl -n {client.namespace} port-forward "
            f"{target} {LOCAL_PORT}:{port}`{advice}"
        )
    command = [kubectl, *kubectl_options, "port-forward", "--address", "127.0.0.1", target, f":{port}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            yield f"http://127.0.0.1:{_port_of(child, target)}"
        finally:
            child.terminate()


def _port_of(child: subprocess.Popen[bytes], target: str) -> int:
    """Return the port that kubectl prints once it listens."""
    assert child.stdout is not None
    deadline_s, output = time.monotonic() + FORWARD_S, b""
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not ready.select(left_s):
                continue
            part = child.stdout.read1(4096)  # type: ignore[attr-defined]
            output += part
            if match := _FORWARDED.search(output.decode(errors="replace")):
                return int(match[1])
            if not part:
                break
    raise ControlError(f"kubectl port-forward {target}: {output.decode(errors='replace').strip() or 'no answer'}")
