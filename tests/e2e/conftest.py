"""Platforms for tests: a shared one that only answers, and ones that a test may break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.coins import variant, write
from bench.platform import MODELS, Running, platform


@pytest.fixture(scope="session")
def coins() -> Iterator[Running]:
    """The example's two networks, served; tests leave it as it is."""
    with platform(MODELS) as running:
        yield running


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Start platforms of the test's own, which end with it."""
    with ExitStack() as stack:
        yield lambda *files: stack.enter_context(platform(*files))


@pytest.fixture(scope="session")
def photo() -> bytes:
    """The photograph of 24 coins as a PNG."""
    return (MODELS.parent / "coins.png").read_bytes()


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Write one of the example's models with changes; see `bench.coins.variant`."""
    return lambda **changes: write(tmp_path / "model.yaml", variant(**changes))
