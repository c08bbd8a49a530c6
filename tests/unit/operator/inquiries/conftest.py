"""Golden pictures, and inquirers that end with their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.golden_pictures import Pictures, tools_of
from fakes.internal_gateway import InternalListener
from segserve_operator.adapters.checks.runner import Inquirer


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    found = Pictures(tmp_path / "golden")
    found.write()
    return found


@pytest.fixture
async def inquirer_of(tmp_path: Path) -> AsyncIterator[Callable[..., Inquirer]]:
    made: list[Inquirer] = []

    def make(listener: InternalListener | None = None, **options: Any) -> Inquirer:
        made.append(Inquirer(tools_of(tmp_path, listener, **options)))
        return made[-1]

    yield make
    for inquirer in made:
        await inquirer.close()
