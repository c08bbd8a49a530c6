"""Registered models of a real MLflow server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fakes.mlflow_server import MlflowServer
from segserve_builder.errors import ArtifactMissingError, SourceDeniedError
from segserve_builder.sources import Access, RetryPolicy, fetch, fetch_folder, folder_digest

pytestmark = pytest.mark.needs("peers")

NETWORK = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(NETWORK).hexdigest()
FILES = {"model.onnx": NETWORK, "MLmodel": b"flavors: {}", "golden/a b.png": b"pixels", "golden/golden.json": b"{}"}


@pytest.fixture(scope="module")
def server(mlflow: MlflowServer) -> MlflowServer:
    mlflow.register("coins", {"model.onnx": b"the first"})
    mlflow.alias("coins", "champion", mlflow.register("coins", FILES))
    mlflow.register("two nets", {"a.onnx": NETWORK, "deep/b.onnx": NETWORK})
    return mlflow


@pytest.fixture
def access(server: MlflowServer) -> Access:
    return Access(endpoints={"models": server.url})


@pytest.mark.parametrize(
    "uri",
    [
        "models:/coins/2",
        "models:/coins@champion",
        "models:/coins/2/model.onnx",
        "models:/coins@champion/model.onnx",
        "models:/two%20nets/1/deep/b.onnx",
    ],
)
def test_a_version_or_an_alias_names_its_only_network_or_a_file(uri: str, access: Access, tmp_path: Path) -> None:
    assert fetch(uri, SHA256, tmp_path, access).read_bytes() == NETWORK


def test_what_log_model_of_mlflow_3_registers_is_read(server: MlflowServer, access: Access, tmp_path: Path) -> None:
    version = server.register_logged_model("logged", FILES)

    assert fetch(f"models:/logged/{version}", SHA256, tmp_path, access).read_bytes() == NETWORK


def test_a_golden_set_is_a_folder_of_the_version(access: Access, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in ("a b.png", "golden.json"):
        (folder / name).write_bytes(FILES[f"golden/{name}"])

    found = fetch_folder("models:/coins@champion/golden", folder_digest(folder), tmp_path / "cache", access)

    assert (found / "a b.png").read_bytes() == b"pixels"


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("models:/coins/7", "404"),
        ("models:/nobody/1", "404"),
        ("models:/coins@nobody", "40"),
        ("models:/coins/2/none.onnx", "40"),
        ("models:/two%20nets/1", "a.onnx, deep/b.onnx; name the file"),
        ("models:/coins/latest", "allowed: models:/name/version"),
        ("models:/coins/2/../../x", "is not a model version"),
    ],
)
def test_what_is_not_there_or_not_one_file_is_said(uri: str, seen: str, access: Access, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=seen):
        fetch(uri, SHA256, tmp_path, access, retry_policy=RetryPolicy(tries=1))


def test_files_that_lie_elsewhere_are_read_by_that_source_and_only_where_it_may(
    server: MlflowServer, access: Access, tmp_path: Path
) -> None:
    uri = f"models:/elsewhere/{server.register('elsewhere', {}, source='s3://nets/model')}"

    with pytest.raises(SourceDeniedError, match="'s3' is not allowed"):
        fetch(uri, SHA256, tmp_path / "cache", access.model_copy(update={"schemes": ("models",)}))
