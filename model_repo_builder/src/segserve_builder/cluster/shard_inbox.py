"""Joins the shards of an assignment, which the operator splits over several ConfigMaps."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from segserve_common.kube.shards import content_of, unpack, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from segserve_builder.cluster.config_map_watch import ConfigMap

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard(Generic[T]):
    """The last content of a shard that could be read, and its version."""

    version: str
    value: T


class ShardInbox(Generic[T]):
    """Calls `deliver` with all shards, in the order of `names`, after every change once each has been read.

    `read` converts the JSON of a shard. If it raises ValueError, or the ConfigMap was deleted, the shard keeps its
    last readable content. Not thread-safe.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[Any], T], deliver: Callable[[tuple[Shard[T], ...]], None]
    ) -> None:
        self._names = tuple(names)
        self._read = read
        self._deliver = deliver
        self._shards: dict[str, Shard[T]] = {}
        self._delivered: tuple[str, ...] = ()

    def take(self, name: str, config_map: ConfigMap | None) -> None:
        """Read the ConfigMap `name`, None if it was deleted."""
        content = content_of(config_map) if config_map is not None else None
        if content is None:
            _LOG.warning("%s is empty or gone; what it said before stays", name)
            return
        version = version_of(content)
        present = self._shards.get(name)
        if present is None or present.version != version:
            try:
                self._shards[name] = Shard(version, self._read(unpack(content)))
            except ValueError as error:
                _LOG.error("%s cannot be read; what it said before stays: %s", name, error)
        self._deliver_changes()

    def _deliver_changes(self) -> None:
        if self._shards.keys() < set(self._names):
            return
        shards = tuple(self._shards[name] for name in self._names)
        versions = tuple(shard.version for shard in shards)
        if versions != self._delivered:
            # In this order, a delivery that raises is repeated with the next event.
            self._deliver(shards)
            self._delivered = versions
