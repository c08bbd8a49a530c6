"""Golden pictures, and inquirers that end with their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.golden_pictures import Pictures, context_of, truth
from fakes.internal_gateway import InternalListener
from segserve_builder.golden.judging import builtin_image
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    found = Pictures(tmp_path / "golden")
    found.write()
    found.shown[builtin_image()] = truth(0)
    return found


@pytest.fixture
async def check_runner_of() -> AsyncIterator[Callable[..., BackgroundCheckRunner]]:
    made: list[BackgroundCheckRunner] = []

    def make(listener: InternalListener | None = None, **options: Any) -> BackgroundCheckRunner:
        made.append(BackgroundCheckRunner(context_of(listener, **options)))
        return made[-1]

    yield make
    for check_runner in made:
        await check_runner.close()
