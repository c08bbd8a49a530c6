"""What `get -w` and `describe` show: of this machine a table and the resource, of a cluster what it knows beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve.cli.describing import described, record_of_latest
from segserve.cli.progress import models_table
from segserve.platforms.local import LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from segserve.platforms.cluster.platform import ClusterPlatform
    from segserve.platforms.port import Platform


def pictures(here: Platform, name: str | None, *, wide: bool) -> Iterator[RenderableType]:
    """Yield what `get -w` shows, of one model or all, now and after changes."""
    if not isinstance(here, LocalPlatform):
        from segserve.cli.cluster.tree import pictures as pictures_of_cluster

        yield from pictures_of_cluster(_cluster(here), name, wide=wide)
    while True:
        yield models_table(here.models() if name is None else [here.model(name)], wide=wide)


def description(here: Platform, name: str) -> str:
    """Return all that is known of a model, as text."""
    model = here.model(name)
    record = record_of_latest(here, model)
    if isinstance(here, LocalPlatform):
        return described(model, record)
    from segserve.cli.cluster.describe import story

    return story(_cluster(here), model, record)


def _cluster(here: Platform) -> ClusterPlatform:
    from segserve.platforms.cluster.platform import ClusterPlatform

    assert isinstance(here, ClusterPlatform), "there are two platforms"
    return here
