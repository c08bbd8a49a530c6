"""The runtime environment: its name, the search for Python's shared library, and errors of commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from segserve_operator.adapters.local import runtime

if TYPE_CHECKING:
    from pathlib import Path


def test_every_package_of_the_lock_is_pinned() -> None:
    lines = [line for line in runtime.lock_file().read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 for line in lines)


def test_another_list_of_packages_makes_another_environment() -> None:
    assert runtime.environment_digest(b"numpy==1.26.4") != runtime.environment_digest(b"numpy==1.26.3")


def test_a_python_without_its_shared_library_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: str(tmp_path))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(runtime.PythonLibraryMissingError, match=f"apt-get install libpython{version}"):
        runtime.find_python_library(tmp_path)


def test_the_error_of_a_failed_command_ends_with_its_output() -> None:
    with pytest.raises(runtime.InstallError, match=r"exit code 3\. Is it on\?.*\n.*no such package"):
        runtime.run_or_raise([sys.executable, "-c", "print('no such package'); exit(3)"], "Is it on?")
