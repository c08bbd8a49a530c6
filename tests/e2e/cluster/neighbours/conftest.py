"""Programs of others that users have beside segserve, built from Go's modules, and what those judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from fakes.cluster import Json
from fakes.lives import lives
from fakes.neighbours import build
from fakes.served_namespace import ServedNamespace
from segserve_common.kube.kinds import Kind


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the program of a folder beside this file, or that of a package."""
    return lambda name, package=".": build(name, tmp_path_factory.mktemp(name) / name, package)


@pytest.fixture(scope="session")
def lived(served: ServedNamespace) -> Mapping[Kind, Sequence[Json]]:
    """Each version of a pool, a model and its rollouts that have been in all states, by kind."""
    return lives(served)
