"""Platforms for tests: a shared one that only answers, and ones that a test may break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

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
    """Write the example's models with changes; see `edit`."""

    def write(**changes: object) -> Path:
        return edit(tmp_path / "model.yaml", **changes)

    return write


def edit(path: Path, *, model: str = "coins", name: str | None = None, **spec: object) -> Path:
    """Write one of the example's models to `path` with fields of its spec replaced, and perhaps another name."""
    import yaml

    documents = yaml.safe_load_all(MODELS.read_text())
    document = next(found for found in documents if found["metadata"]["name"] == model)
    document["metadata"]["name"] = name or model
    for part in ("artifact", "golden"):
        document["spec"][part]["uri"] = (MODELS.parent / document["spec"][part]["uri"]).resolve().as_uri()
    document["spec"] |= spec
    path.write_text(yaml.safe_dump(document))
    return path
