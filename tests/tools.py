"""What some tests need of a machine beyond the packages of `.venv`: how it is looked for, and how to get it."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cluster import kind

ROOT: Final = Path(__file__).parent.parent
DEBIAN_PYTHON: Final = ROOT / ".venv-debian/bin/python"
EXPORTERS: Final = ROOT / ".venv-exporters/bin/python"
ANNOTATORS: Final = ROOT / ".venv-annotators/bin"
PEERS: Final = ROOT / ".venv-peers/bin"
PEER_PACKAGES: Final = ROOT / ".venv-peers/lib/python3.11/site-packages"
CACHE: Final = Path.home() / ".cache/segserve"
_IPV6: Final = Path("/proc/net/if_inet6")
AZURITE: Final = CACHE / "azurite-3.37.0/node_modules/.bin/azurite-blob"


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, library or environment that tests name by `@pytest.mark.needs(...)`."""

    title: str
    is_there: Callable[[], bool]
    remedy: str

    @property
    def lack(self) -> str:
        """Why a test that needs it is skipped."""
        return f"needs {self.title} ({self.remedy})"


def _library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _program(name: str, package: str = "") -> Tool:
    return Tool(name, lambda: shutil.which(name) is not None, f"Debian: apt-get install {package or name}")


TOOLS: Final[Mapping[str, Tool]] = {
    "torchvision": Tool("Debian's torchvision", DEBIAN_PYTHON.is_file, "make oracles"),
    "exporters": Tool("the environment of exporters", (EXPORTERS.parents[1] / "imgly.stamp").is_file, "make exporters"),
    "annotators": Tool("the environment of Label Studio", (ANNOTATORS / "python").is_file, "make annotators"),
    "peers": Tool("the environment of peers", (PEERS / "python").is_file, "make peers"),
    "torchmetrics": Tool(
        "torchmetrics in the environment of peers", (PEER_PACKAGES / "torchmetrics").is_dir, "make peers"
    ),
    "pydensecrf": Tool("pydensecrf", lambda: find_spec("pydensecrf") is not None, "make oracles"),
    "azurite": Tool("Azurite", AZURITE.is_file, "make system"),
    "curl": _program("curl"),
    "chromium": _program("chromium"),
    "kubectl": Tool("kubectl of the tests' Kubernetes", kind.KUBECTL.is_file, "make cluster-build"),
    "docker-registry": _program("docker-registry"),
    "prometheus": _program("prometheus"),
    "promtool": _program("promtool", "prometheus"),
    "amtool": _program("amtool", "prometheus-alertmanager"),
    "ipv6": Tool("IPv6", lambda: bool(_IPV6.exists() and _IPV6.read_text()), "a kernel that has IPv6 switched on"),
    "triton": Tool("another Triton", lambda: bool(os.environ.get("SEGSERVE_TRITON")), "make test-native TRITON=folder"),
    "hours": Tool("hours on a real Kubernetes", lambda: False, "make cluster-build; SMOKE=folder"),
    "gpu": Tool("a GPU of NVIDIA", lambda: shutil.which("nvidia-smi") is not None, "a machine that has one"),
    "libb64": Tool("perf_analyzer's libb64", lambda: _library("libb64.so.0d"), "Debian: apt-get install libb64-0d"),
}
OF_THE_MACHINE: Final = [TOOLS[name] for name in ("ipv6", "triton", "hours", "gpu")]
"""What nothing here installs: a tier is whole without it."""
