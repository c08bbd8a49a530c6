"""A release of this checkout is published to a registry in a container and to a package index, and fetched from there.

It needs Docker and no cluster. The images' bases are those of the other tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from bench.ports import free_port
from cluster import images, kind
from cluster.node import docker, environment, run_script
from fakes.docs import ROOT
from fakes.installed_operator import HELM
from fakes.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.needs("docker-registry"), pytest.mark.timeout(1800)]

UV: Final = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".venv-uv/bin/uv")
VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMES: Final = ("segserve-operator", "segserve-server")
STORAGE: Final = "version: 0.1\nstorage: {filesystem: {rootdirectory: /tmp}}\nhttp: {addr: ':5000'}\n"
PYPISERVER: Final = (UV, "tool", "run", "--quiet", "--from", "pypiserver==2.4.2", "pypi-server")
INDEX: Final = (*PYPISERVER, "run", "--disable-fallback", "-P.", "-a.", "-i127.0.0.1")


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was made, where it was published, and what was said meanwhile."""

    folder: Path
    registry: str
    index: str
    said: str


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    own = {**environment(), **variables}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def copy_of_the_checkout(folder: Path) -> Path:
    """Have what this checkout has, committed or not, as one commit of its own, in which the release has a date."""
    folder.mkdir()
    run("bash", "-c", 'git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$0"', folder)
    images.fit(folder / "images/server.lock")
    changelog = folder / "CHANGELOG.md"
    text = changelog.read_text()
    if f"\n## [{VERSION}] - " not in text:
        changelog.write_text(text.replace("\n## [Unreleased]\n", f"\n## [{VERSION}] - 2031-02-03\n"))
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    for arguments in (
        ("init", "--quiet"),
        ("add", "--all"),
        (*identity, "commit", "--quiet", "--message", "A release"),
    ):
        run("git", *arguments, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Debian's registry, in a container."""
    if reason := kind.unfit():
        pytest.skip(f"no Docker: {reason}")
    run_script("docker.sh")
    if not docker("images", "--quiet", images.TRITON_IMAGE):
        images.main()
    config = tmp_path_factory.mktemp("registry") / "config.yml"
    config.write_text(STORAGE)
    mounts = (f"-v{shutil.which('docker-registry')}:/registry:ro", f"-v{config}:/config.yml:ro")
    serve = (images.PYTHON_IMAGE, "/registry", "serve", "/config.yml")
    container = docker("run", "--detach", "--rm", "--publish=127.0.0.1::5000", *mounts, *serve).strip()
    address = docker("port", container, "5000").strip()
    try:
        until(lambda: answers(f"http://{address}/v2/"), "the registry answers")
        yield address
    finally:
        docker("rmi", "--force", *(f"{address}/vision/{name}:{VERSION}" for name in NAMES), check=False)
        docker("rm", "--force", container)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a package index to which anybody uploads."""
    port, folder = free_port(), tmp_path_factory.mktemp("index")
    with subprocess.Popen([*INDEX, f"-p{port}", folder], stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/"), "the index answers")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def release(registry: str, index: str, tmp_path_factory: pytest.TempPathFactory) -> Release:
    copy = copy_of_the_checkout(tmp_path_factory.mktemp("release") / "copy")
    to = {"PUSH": "1", "REGISTRY": f"{registry}/vision", "HELM_OPTIONS": "--plain-http"}
    upload = {"TWINE_REPOSITORY_URL": index, "TWINE_USERNAME": "anybody", "TWINE_PASSWORD": "-"}
    bases = {
        "OPERATOR_BASE": images.PYTHON_IMAGE,
        "SERVER_BASE": images.TRITON_IMAGE,
        "BUILD_OPTIONS": "--network=host",
    }
    programs = {"UV": UV, "PYTHONS": "python3.11 python2.0"}
    said = run(copy / "images/release.sh", VERSION, **to, **upload, **bases, **programs)
    return Release(copy / "out/release", f"{registry}/vision", index, said)


def test_a_release_consists_of_packages_images_chart_and_lists_of_their_contents(release: Release) -> None:
    python = {f"segserve-{VERSION}-py3-none-any.whl", f"segserve-{VERSION}.tar.gz"}
    archives, chart = {f"{name}-{VERSION}.tar" for name in NAMES}, f"segserve-{VERSION}.tgz"
    contents = {f"{name}-{VERSION}.cdx.json": name for name in ("segserve", *NAMES)}
    found = {path.name for path in release.folder.iterdir()}
    assert found == {*python, *archives, chart, *contents, "NOTES.md", "PUSHED", "SHA256SUMS"}

    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=release.folder)
    assert (release.folder / "NOTES.md").read_text().startswith("\n### Added\n")
    assert "the wheel runs on: python3.11; not tried, as they are not there: python2.0" in release.said
    listed = {}
    for file, name in contents.items():
        bom = json.loads((release.folder / file).read_text())
        parts = [*bom["components"], *filter(None, [bom["metadata"].get("component")])]
        listed[name] = {each["name"]: each.get("version") for each in parts}
    assert [each["segserve"] for each in listed.values()] == [VERSION] * 3
    assert "httpx" in listed["segserve"]
    assert ("kopf" in listed["segserve-operator"], "onnxruntime" in listed["segserve-server"]) == (True, True)


def test_the_chart_of_the_registry_installs_the_images_of_the_registry(release: Release, tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path)}
    chart = (f"oci://{release.registry}/segserve", "--version", VERSION, "--plain-http")
    run(HELM, "pull", *chart, "--destination", tmp_path, **own)

    rendered = run(
        HELM, "template", "segserve", tmp_path / f"segserve-{VERSION}.tgz", "--set", "pool.create=true", **own
    )

    named = set(re.findall(r"\S+/segserve-\w+:\S+", rendered))
    assert named == {f"{release.registry}/{name}:{VERSION}" for name in NAMES}
    assert "localhost/" not in run(HELM, "show", "all", *chart, **own)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_the_registry_is_the_one_that_was_pushed_and_runs(release: Release, name: str) -> None:
    image = f"{release.registry}/{name}:{VERSION}"
    docker("rmi", "--force", image)

    docker("pull", "--quiet", image)

    (pushed,) = re.findall(f"^.*/{name}@.*$", (release.folder / "PUSHED").read_text(), re.M)
    assert pushed in docker("inspect", "--format", "{{.RepoDigests}}", image)
    version = "from importlib.metadata import version; print(version('segserve'))"
    assert docker("run", "--rm", "--entrypoint=python3", image, "-c", version) == f"{VERSION}\n"


def test_the_index_serves_the_packages_that_were_made(release: Release, tmp_path: Path) -> None:
    download = (
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--index-url",
        f"{release.index}/simple/",
    )
    run(*download, "--dest", tmp_path, f"segserve=={VERSION}")

    (wheel,) = tmp_path.iterdir()
    assert wheel.read_bytes() == (release.folder / wheel.name).read_bytes()
