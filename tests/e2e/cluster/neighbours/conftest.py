"""Programs of others that users have beside segserve, built from Go's modules."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the program of a folder beside this file; Go keeps what it has compiled."""

    def build(name: str) -> Path:
        program = tmp_path_factory.mktemp(name) / name
        environment = os.environ | {"GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"}
        command = ["go", "build", "-o", str(program), "."]
        subprocess.run(command, cwd=Path(__file__).with_name(name), env=environment, check=True)
        return program

    return build
