"""The images that the tests on a cluster run: made of what is on this machine, layer by layer, without Docker.

`python -m cluster.images` (in `tests/`) makes them and the cluster's own parts, which takes minutes.
They are for tests: the server's image has the embedded Triton, which users never get (`images/` has what they build on
NVIDIA's image).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import envoy

import segserve
import segserve_builder
import segserve_common
import segserve_operator
import segserve_platform
import segserve_ui
from cluster import kind, node
from cluster.make_image import (
    Image,
    Layer,
    Link,
    Part,
    Text,
    Tree,
    read_layer,
    write_layer,
)
from segserve_operator.adapters.local.code_folder import CODE_VARIABLE, code_digest
from segserve_operator.adapters.local.runtime import RuntimeEnvironment, ensure_runtime, run_or_raise

SERVER_IMAGE: Final = "localhost/segserve-server:test"
OPERATOR_IMAGE: Final = "localhost/segserve-operator:test"
ENVOY_IMAGE: Final = "localhost/segserve-envoy:test"
FORMER_IMAGES: Final = ("localhost/segserve-server:former", "localhost/segserve-operator:former")

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segserve"
REPOSITORY: Final = Path(__file__).parents[2]
FORMER: Final = REPOSITORY / "tests/golden/releases/2e848198.tar.xz"
"""Chart and code of the former release, from which the tests upgrade."""
_FAULTS: Final = REPOSITORY / "tests/faults/inside/sitecustomize.py"
_BASE: Final = node.CACHE / "base.tar"
"""A root folder with what Python's own libraries need of a system; `build.sh` makes it."""
_HOME: Final = "/opt/segserve"
_EXAMPLE: Final = f"{_HOME}/examples/coins"
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_NAME: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_USER: Final = {"User": "1000:1000", "WorkingDir": "/tmp", "Entrypoint": [], "Cmd": []}
_COMMON: Final = {
    "HOME": "/tmp",
    "SEGSERVE_ARTIFACT_BASE": f"file://{_EXAMPLE}",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}
_NOT_OF_PYTHON: Final = ("site-packages", "dist-packages", "test", "idlelib", "tkinter", "ensurepip", "turtledemo")
_NOT_OF_TRITON: Final = ("backends", "python_backend_stubs")
_MAKERS: Final = (Path(__file__), Path(__file__).with_name("make_image.py"))
_KEPT: Final = 3
_IN_USE_S: Final = 1800


def images() -> tuple[Image, ...]:
    """Return the images; only layers whose content has changed are made, by one process at a time."""
    runtime = ensure_runtime(CACHE, lambda text: print(text, file=sys.stderr))
    folder = CACHE / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = (read_layer(_BASE), _python(runtime))
        present = (_server(base, runtime), _operator(base), _envoy(base[:-1]))
        kernels = runtime.code / "segserve_builder/kernels/__pycache__"
        former = (_former(image, tag, kernels) for image, tag in zip(present[:2], FORMER_IMAGES, strict=True))
        return (*present, *former)


def _server(base: tuple[Layer, ...], runtime: RuntimeEnvironment) -> Image:
    site = f"{_HOME}/runtime/lib/{_NAME}/site-packages"
    layers = (
        *base,
        _layer("runtime", _digest(runtime.root.name), lambda path: write_layer(path, _runtime_parts(runtime))),
        _layer("builder", runtime.code.name, lambda at: _write_code(at, sorted(runtime.code.iterdir()))),
        _faults(),
        _examples(),
    )
    environment = {
        **_COMMON,
        "PATH": f"{_HOME}/runtime/bin:{_PATH}",
        "LD_LIBRARY_PATH": f"{_HOME}/python/lib:{site}/nvidia_pytriton.libs",
        CODE_VARIABLE: f"{_HOME}/code",
        "SEGSERVE_TRITONSERVER": f"{site}/pytriton/tritonserver/bin/tritonserver",
        "SEGSERVE_BACKENDS": f"{_HOME}/runtime/backends",
        "SEGSERVE_NETWORK_BACKEND": "python",
        "SEGSERVE_TRITON_LISTENS": "pod",
    }
    return Image(SERVER_IMAGE, layers, environment, _USER)


def _operator(base: tuple[Layer, ...]) -> Image:
    packages = _packages()
    imported = (segserve, segserve_builder, segserve_common, segserve_operator, segserve_platform, segserve_ui)
    ours = [Path(package.__file__ or "").parent for package in imported]
    key = _digest(*map(code_digest, ours))
    # For processes without an environment (`python -I`): the worker, and expressions.
    library = f"lib{_NAME}.so.1.0"
    found: list[Part] = [
        Text(f"{_HOME}/python/lib/{_NAME}/site-packages/segserve.pth", f"{_HOME}/packages\n{_HOME}/code\n"),
        Link(f"/usr/lib/{library}", f"{_HOME}/python/lib/{library}"),
    ]
    layers = (
        *base,
        _layer("packages", _digest(packages.name), lambda at: write_layer(at, [Tree(packages, f"{_HOME}/packages")])),
        _layer("operator", key, lambda path: _write_code(path, ours)),
        _layer("found", _digest("2", sys.version), lambda path: write_layer(path, found)),
        _examples(),
    )
    environment = {
        **_COMMON,
        "PATH": f"{_HOME}/python/bin:{_PATH}",
        "LD_LIBRARY_PATH": f"{_HOME}/python/lib",
        "PYTHONPATH": f"{_HOME}/code:{_HOME}/packages",
    }
    return Image(OPERATOR_IMAGE, layers, environment, _USER)


def _envoy(base: tuple[Layer, ...]) -> Image:
    binary = Path(envoy.__file__).parent / "_bin/envoy"
    key = _digest(str(binary.stat().st_size), str(binary.stat().st_mtime_ns))
    layer = _layer("envoy", key, lambda path: write_layer(path, [Tree(binary, "/usr/local/bin/envoy")]))
    return Image(ENVOY_IMAGE, (*base, layer), {"PATH": _PATH, "HOME": "/tmp"}, _USER)


def _former(present: Image, tag: str, kernels: Path) -> Image:
    """Return an image of the former release: its code in the place of the present one, in the same environment.

    What is compiled in the folder `kernels` goes along: it is used where the former kernels are the same.
    """

    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, tarfile.open(FORMER) as archive:
            archive.extractall(folder, filter="data")
            (builder,) = Path(folder).glob("*/src/segserve_builder")
            shutil.copytree(kernels, builder / "kernels" / kernels.name)
            _write_code(path, [found.parent for found in sorted(Path(folder).glob("*/src/*/__init__.py"))])

    compiled = sorted(path.name for path in kernels.iterdir())
    code = _layer("former", _digest(hashlib.sha256(FORMER.read_bytes()).hexdigest(), *compiled), write)
    ours = ("builder-", "operator-", "faults-")
    layers = (*(layer for layer in present.layers if not layer.path.name.startswith(ours)), code)
    return replace(present, tag=tag, layers=layers)


def _python(runtime: RuntimeEnvironment) -> Layer:
    """Return the layer of the interpreter that runs this, without its packages."""
    standard = Path(sysconfig.get_path("stdlib"))
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = f"lib{_NAME}.so.1.0"
    parts: list[Part] = [
        Tree(interpreter, f"{_HOME}/python/bin/{_NAME}"),
        Link(f"{_HOME}/python/bin/python3", _NAME),
        Tree(runtime.library_folder / library, f"{_HOME}/python/lib/{library}"),
        Tree(standard, f"{_HOME}/python/lib/{_NAME}", lambda name: name.startswith(("config-", *_NOT_OF_PYTHON))),
    ]
    key = _digest(sys.version, sys.base_prefix)
    return _layer("python", key, lambda path: write_layer(path, parts))


def _runtime_parts(runtime: RuntimeEnvironment) -> list[Part]:
    """Return the environment of what runs inside Triton, moved to a folder of its own: it finds itself by its place."""
    target = f"{_HOME}/runtime"
    site = f"{target}/lib/{_NAME}/site-packages"
    triton = tuple(f"pytriton/tritonserver/{name}" for name in _NOT_OF_TRITON)
    code = f"import os, sys; sys.path.append(os.environ.get({CODE_VARIABLE!r}) or '{_HOME}/code')\n"
    return [
        Text(f"{target}/pyvenv.cfg", f"home = {_HOME}/python/bin\ninclude-system-site-packages = false\n"),
        Link(f"{target}/bin/{_NAME}", f"{_HOME}/python/bin/{_NAME}"),
        Link(f"{target}/bin/python3", _NAME),
        Link(f"{target}/bin/python", _NAME),
        Text(f"{site}/segserve.pth", code),
        Tree(runtime.backends, f"{target}/backends"),
        Tree(
            runtime.site_packages, site, lambda name: name.startswith((*triton, "pip", "setuptools", "pkg_resources"))
        ),
    ]


def _examples() -> Layer:
    folder = REPOSITORY / "examples/coins"
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".onnx", ".png", ".json", ".yaml"})
    key = _digest(*(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files))
    parts = [Tree(path, f"{_EXAMPLE}/{path.relative_to(folder)}") for path in files]
    return _layer("examples", key, lambda path: write_layer(path, parts))


def _faults() -> Layer:
    """Return the layer of what makes a revision misbehave where the variable FAULTS says so."""
    key = _digest(_FAULTS.read_text())
    parts = [Tree(_FAULTS, f"{_HOME}/code/{_FAULTS.name}")]
    return _layer("faults", key, lambda path: write_layer(path, parts))


def _write_code(path: Path, packages: Sequence[Path]) -> None:
    """Write packages as a layer below the code folder, compiled: nobody may write there."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for package in packages:
            shutil.copytree(package, Path(folder, package.name), ignore=shutil.ignore_patterns("*.pyc"))
        # unchecked: what a layer says of times is not asked
        compiler = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", folder]
        subprocess.run(compiler, check=True)
        write_layer(path, [Tree(Path(folder, package.name), f"{_HOME}/code/{package.name}") for package in packages])


def _packages() -> Path:
    """Return a folder with the operator's third-party packages in the tested versions."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = sorted({*project["dependencies"], *_requirements(project["optional-dependencies"], "operator")})
    constraints = REPOSITORY / "constraints.txt"
    target = CACHE / "images/packages" / _digest(sys.version, *wanted, constraints.read_text())
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run_or_raise([*pip, "--target", str(staging), "--constraint", str(constraints), *wanted], "See pip's own words")
        staging.chmod(0o755)
        staging.rename(target)
        _keep_newest(target.parent, "[!.]*")
    os.utime(target)
    return target


def _requirements(extras: dict[str, list[str]], extra: str) -> Iterator[str]:
    for requirement in extras[extra]:
        if requirement.startswith("segserve["):
            for inner in requirement.removeprefix("segserve[").removesuffix("]").split(","):
                yield from _requirements(extras, inner)
        else:
            yield requirement


def _layer(name: str, key: str, write: Callable[[Path], object]) -> Layer:
    """Return the layer of this name and key from the cache, written where it is missing."""
    folder = CACHE / "images/layers"
    stem = f"{name}-{_digest(key, *(path.read_text() for path in _MAKERS))}"
    path, digest = folder / f"{stem}.tar", folder / f"{stem}.digest"
    if not (path.exists() and digest.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        digest.unlink(missing_ok=True)
        write(path)
        digest.write_text(read_layer(path).digest)
        _keep_newest(folder, f"{name}-*.tar")
    os.utime(path)
    return Layer(path, digest.read_text(), path.stat().st_size)


def _keep_newest(folder: Path, pattern: str) -> None:
    """Remove what is neither among the newest nor was used lately: another process may be reading it."""
    by_age = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[_KEPT:]:
        if old.stat().st_mtime < time.time() - _IN_USE_S:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
            old.with_suffix(".digest").unlink(missing_ok=True)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def main() -> None:
    """Make the cluster's parts and the images where they are missing, or say why this machine runs no cluster."""
    if reason := kind.unfit():
        print(f"no cluster: {reason}", file=sys.stderr)
        return
    kind.build()
    for image in images():
        print(f"{image.tag}: {sum(layer.size for layer in image.layers) / 1e6:.0f} MB in {len(image.layers)} layers")


if __name__ == "__main__":
    main()
