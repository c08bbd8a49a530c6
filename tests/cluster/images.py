"""The images that the tests on a cluster run: the product's Dockerfiles, and what `Dockerfile` here adds for tests.

`python -m cluster.images` (in `tests/`) makes them and the cluster's own parts, which takes minutes.
SEGSERVE_TEST_TRITON names another image of Triton than the embedded one, such as NVIDIA's.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import envoy

from cluster import kind
from cluster.node import docker
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import ensure_runtime

SERVER_IMAGE: Final = "localhost/segserve-server:test"
OPERATOR_IMAGE: Final = "localhost/segserve-operator:test"
ENVOY_IMAGE: Final = "localhost/segserve-envoy:test"
FORMER_IMAGES: Final = ("localhost/segserve-server:former", "localhost/segserve-operator:former")
IMAGES: Final = (SERVER_IMAGE, OPERATOR_IMAGE, ENVOY_IMAGE)
PYTHON_IMAGE: Final = "localhost/segserve-python:test"
"""The base that `build.sh` makes or pulls, as it does the next two."""
KUBE_ROUTER_IMAGE: Final = "localhost/segserve-kube-router:test"
METRICS_SERVER_IMAGE: Final = "localhost/segserve-metrics-server:test"
TRITON_IMAGE: Final = os.environ.get("SEGSERVE_TEST_TRITON") or "localhost/segserve-triton:test"

_EMBEDDED: Final = not os.environ.get("SEGSERVE_TEST_TRITON")
_REPOSITORY: Final = Path(__file__).parents[2]
_OURS: Final = Path(__file__).with_name("Dockerfile")
_RUNTIME_LOCK: Final = _REPOSITORY / "model_repo_builder/src/segserve_builder/runtime.lock"


def build() -> None:
    """Build the images; what has not changed comes from Docker's cache."""
    _build(OPERATOR_IMAGE, _REPOSITORY / "images/operator.Dockerfile", _REPOSITORY, PYTHON_IMAGE)
    with _server_context() as context:
        _build(f"{SERVER_IMAGE}-plain", context / "images/server.Dockerfile", context, TRITON_IMAGE)
    if _EMBEDDED:
        _build(SERVER_IMAGE, _OURS, _REPOSITORY, f"{SERVER_IMAGE}-plain", "server")
    else:
        docker("tag", f"{SERVER_IMAGE}-plain", SERVER_IMAGE)
    _build(ENVOY_IMAGE, _OURS, Path(envoy.__file__).parent / "_bin", PYTHON_IMAGE, "envoy")
    for former, present in zip(FORMER_IMAGES, IMAGES[:2], strict=True):
        _build(former, _OURS, _OURS.parent, present, "former")


def fit(server_lock: Path) -> None:
    """Change the lock of the server's image where the tests' Triton needs other versions: the embedded one, numpy 1."""
    if _EMBEDDED:
        entries = {**_entries(server_lock), **_entries(_RUNTIME_LOCK)}
        server_lock.write_text("".join(text for name, text in sorted(entries.items()) if name != "nvidia-pytriton"))


def size_mb(image: str, base: str) -> float:
    """Return the size of an image's layers beyond its base in MB."""
    size, below = (int(docker("image", "inspect", "--format", "{{.Size}}", each)) for each in (image, base))
    return (size - below) / 1e6


@contextmanager
def _server_context() -> Iterator[Path]:
    """Have a folder of what the server's image is made of. The embedded Triton needs numpy 1, as local runtimes do."""
    if not _EMBEDDED:
        yield _REPOSITORY
        return
    runtime = ensure_runtime(cache_folder(), lambda step: print(step.text, file=sys.stderr))
    _build(TRITON_IMAGE, _OURS, runtime.root, PYTHON_IMAGE, "triton")
    with tempfile.TemporaryDirectory(prefix="segserve-image-") as folder:
        ignored = (_REPOSITORY / "images/server.Dockerfile.dockerignore").read_text().split()
        for name in (*(line[1:] for line in ignored if line.startswith("!")), "images/server.Dockerfile"):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(_REPOSITORY, name).is_dir():
                shutil.copytree(_REPOSITORY / name, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(_REPOSITORY / name, target)
        fit(Path(folder, "images/server.lock"))
        yield Path(folder)


def _entries(lock: Path) -> dict[str, str]:
    """Return the text of each entry of a lock by the package's name."""
    return {found[1]: found[0] for found in re.finditer(r"^([\w.-]+)==(?:.*\\\n)*.*\n", lock.read_text(), re.M)}


def _build(tag: str, file: Path, context: Path, base: str, target: str = "") -> None:
    options = ("--target", target) if target else ()
    # What installs packages reaches their registry as this machine does.
    docker("build", "--quiet", "--network=host", f"--build-arg=BASE={base}", *options, "-t", tag, "-f", str(file),
           str(context))  # fmt: skip


def main() -> None:
    """Make the cluster's parts and the images where they are missing, or say why this machine runs no cluster."""
    if reason := kind.unfit():
        print(f"no cluster: {reason}", file=sys.stderr)
        return
    kind.build()
    build()
    for image, base in ((SERVER_IMAGE, TRITON_IMAGE), (OPERATOR_IMAGE, PYTHON_IMAGE), (ENVOY_IMAGE, PYTHON_IMAGE)):
        print(f"{image}: {size_mb(image, base):.0f} MB beyond {base}")


if __name__ == "__main__":
    main()
