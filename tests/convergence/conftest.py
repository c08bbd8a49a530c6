"""What several tests compare with."""

from __future__ import annotations

import asyncio

import pytest

from convergence.story import Undisturbed


@pytest.fixture(scope="session")
def undisturbed() -> Undisturbed:
    """How the story of two models ends when nothing goes wrong."""
    return asyncio.run(Undisturbed.of_story())
