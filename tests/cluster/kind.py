"""The tests' Kubernetes: a cluster of kind, which the scripts of this folder start and delete."""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cluster.node import CACHE, NAME, Node, docker, run_script

STATE: Final = CACHE / "clusters" / NAME
"""The folder of a running cluster's files; `test-run` in it says which run of the tests has to delete the cluster."""
KUBECONFIG: Final = STATE / "kubeconfig"
KUBECTL: Final = CACHE / "bin/kubectl"
FIRST: Final = Node(f"{NAME}-control-plane")
SECOND: Final = Node(f"{NAME}-worker")
"""A node that a test may lose."""
SECOND_TAINT: Final = "segserve.dev/second-node"
"""Pods that do not tolerate this taint stay away from the second node."""


def unfit() -> str:
    """Return why this machine cannot run the cluster; empty where it can."""
    if os.geteuid() == 0 and Path("/etc/debian_version").exists():
        return ""
    answers = shutil.which("docker") and docker("info", "--format", "{{.ID}}", check=False).strip()
    return "" if answers else "it needs a Docker daemon, or root on Debian, where it starts one"


def build() -> None:
    """Make what is missing for a cluster: minutes, once."""
    run_script("build.sh")


def is_up() -> bool:
    """Tell whether the cluster runs."""
    return (STATE / "ready").exists() and FIRST.is_up


def stop() -> None:
    """Delete the cluster and all that is in it."""
    run_script("down.sh")


@contextmanager
def running() -> Iterator[None]:
    """Start the cluster for the time of the block, or use the one that is up and leave it up."""
    was_up = is_up()
    try:
        if not was_up:
            run_script("up.sh")
        yield
    finally:
        if not was_up:
            stop()


def host() -> str:
    """Return this machine's address as pods see it."""
    gateways = docker("network", "inspect", "kind", "--format", "{{range .IPAM.Config}}{{println .Gateway}}{{end}}")
    return next(each for each in gateways.split() if ipaddress.ip_address(each).version == 4)
