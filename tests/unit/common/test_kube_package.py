"""The official Kubernetes package beside ours: loaded in parts, and whole for whoever else shares the process."""

from __future__ import annotations

import subprocess
import sys


def output_of(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return run.stdout.strip()


def test_our_client_loads_neither_models_nor_web_sockets() -> None:
    program = """
import sys
import segserve_common.kube.async_client
import segserve_common.kube.client
costly = {"oauthlib", "websocket", "kubernetes.client.models.v1_pod", "kubernetes.aio.client.models.v1_pod"}
print(sorted(costly & sys.modules.keys()))
"""
    assert output_of(program) == "[]"


def test_a_users_program_has_the_whole_package_beside_ours() -> None:
    program = """
import segserve_common.kube.async_client
import kubernetes
from kubernetes import client, config, watch
from kubernetes.aio.config import load_kube_config
print(kubernetes.__version__ > "", client.CoreV1Api.__name__, callable(config.load_kube_config), watch.Watch.__name__)
print(callable(load_kube_config))
try:
    kubernetes.nothing
except AttributeError as error:
    print(error)
"""
    assert output_of(program).splitlines() == [
        "True CoreV1Api True Watch",
        "True",
        "module 'kubernetes' has no attribute 'nothing'",
    ]


def test_a_program_that_loaded_the_package_first_keeps_it() -> None:
    program = """
import kubernetes
before = kubernetes
import segserve_common.kube.client
import kubernetes
print(kubernetes is before, kubernetes.client.CoreV1Api.__name__)
"""
    assert output_of(program) == "True CoreV1Api"
