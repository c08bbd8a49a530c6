"""The command line of the embedded Triton, and the removal of its shared memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from segserve_builder.render import tritonserver
from segserve_builder.render.tritonserver import Ports
from segserve_operator.adapters.local import triton
from segserve_operator.adapters.local.runtime import RuntimeEnvironment

RUNTIME = RuntimeEnvironment(
    root=Path("/cache/runtime/1"), code=Path("/cache/runtime/1/code/2"), library_folder=Path("/lib")
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> triton.Command:
    monkeypatch.setenv("SEGSERVE_STATE", "/state")
    ports = Ports(1, 2, 3)
    return triton.triton_command(RUNTIME, Path("/repository"), ports=ports, shm_prefix="seg-main-", api_secret="word")


def test_every_address_is_loopback(command: triton.Command) -> None:
    addresses = [argument.partition("=")[2] for argument in command.argv if "-address=" in argument]
    assert addresses == ["127.0.0.1"] * 3


def test_stubs_find_their_python_library_and_code(command: triton.Command) -> None:
    assert command.environment["PATH"].startswith("/cache/runtime/1/bin:")
    assert command.environment["LD_LIBRARY_PATH"].startswith("/lib:")
    assert command.environment["SEGSERVE_CODE"] == "/cache/runtime/1/code/2"


def test_the_callers_environment_variables_are_passed_on(command: triton.Command) -> None:
    assert command.environment["SEGSERVE_STATE"] == "/state"


def test_a_prefix_that_could_name_other_files_is_refused() -> None:
    with pytest.raises(ValueError, match="letters"):
        tritonserver.sweep_shm("../x")


def test_a_sweep_removes_only_the_regions_with_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonserver, "_SHM_FOLDER", tmp_path)
    region, other = str(uuid.uuid4()), str(uuid.uuid4())
    for name in (f"seg-main-{region}", f"seg-main-2-{other}", "seg-main-notes"):
        (tmp_path / name).touch()
    assert tritonserver.sweep_shm("seg-main-") == (f"seg-main-{region}",)
    assert {path.name for path in tmp_path.iterdir()} == {f"seg-main-2-{other}", "seg-main-notes"}
