"""Access of this user's artifact fetches, and how a pool restricts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fakes.cluster_models import EXAMPLES
from segserve_builder.errors import SourceDeniedError
from segserve_builder.sources.file import PvcSource
from segserve_operator.adapters.local.access import local_access
from segserve_operator.adapters.local.files import CACHE_VARIABLE, CONFIG_VARIABLE
from segserve_operator.api.artifacts import Artifacts

ARTIFACTS = Artifacts.model_validate(
    {
        "schemes": ["s3"],
        "endpoints": {"s3": "http://127.0.0.1:9000"},
        "credentials": [{"scheme": "s3", "secretRef": {"name": name}} for name in ("absent", "reader")],
        "maxSize": "1Mi",
    }
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("config")
def test_private_addresses_are_allowed_and_the_metadata_service_is_not() -> None:
    access = local_access()

    for address in ("127.0.0.1", "192.168.1.2", "93.184.216.34"):
        access.check_address("any", address)
    with pytest.raises(SourceDeniedError):
        access.check_address("any", "169.254.169.254")
    assert access.ambient


def test_a_pool_restricts_access(config: Path) -> None:
    (config / "secrets/reader").mkdir(parents=True)
    (config / "secrets/reader/access-key-id").write_text("AKIA\n")

    access = local_access(ARTIFACTS)

    assert (access.schemes, access.endpoints, access.max_bytes) == (("s3",), ARTIFACTS.endpoints, 1024**2)
    assert access.secret("s3", "bucket") == {"access-key-id": "AKIA"}


def test_a_claim_is_a_folder_of_the_configuration(config: Path) -> None:
    source = PvcSource()
    with pytest.raises(SourceDeniedError, match="no claims are mounted here"), source.open("pvc://m/x", local_access()):
        pass
    (config / "claims/m").mkdir(parents=True)
    (config / "claims/m/x").write_bytes(b"x")

    with source.open("pvc://m/x", local_access()) as stream:
        assert stream.read(10) == b"x"


POOL = {
    "apiVersion": "segserve.dev/v1alpha1",
    "kind": "TritonPool",
    "metadata": {"name": "default"},
    "spec": {"artifacts": {"schemes": ["s3"]}},
}


def test_a_pool_among_the_files_restricts_a_build(config: Path) -> None:
    (example, *_) = yaml.safe_load_all((EXAMPLES / "coins/model.yaml").read_text())
    (config / "files.yaml").write_text(yaml.safe_dump_all([POOL, example]))
    command = [sys.executable, "-m", "segserve_platform.cli", "build", "-f", "files.yaml", "-o", "out"]

    done = subprocess.run(
        command, cwd=config, env=os.environ | {CACHE_VARIABLE: str(config)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "the scheme 'file' is not allowed; allowed: s3" in done.stderr
