"""The architecture page names modules and folders that exist."""

from __future__ import annotations

import re

import pytest

from fakes.docs import ROOT, prose

pytestmark = pytest.mark.same

PAGE = ROOT / "docs/explanation/architecture.md"
SOURCES = [ROOT / folder for folder in ("client/src", "model_repo_builder/src", "operator/src")]
PACKAGES = [package for source in SOURCES for package in source.iterdir() if (package / "__init__.py").is_file()]
MODULE = re.compile(r"`([a-z_]+(?:[./][a-z_]+)+/?)`")
OTHER = {"client.models", "client.rollouts", "pyproject.toml"}


def exists(name: str) -> bool:
    path = name.removesuffix(".py").replace(".", "/").strip("/")
    return any((root / path).is_dir() or (root / f"{path}.py").is_file() for root in (*SOURCES, *PACKAGES, ROOT))


def test_every_module_on_the_page_exists() -> None:
    names = set(MODULE.findall(prose(PAGE))) - OTHER

    assert len(names) > 40
    assert {name for name in names if not exists(name)} == set()
