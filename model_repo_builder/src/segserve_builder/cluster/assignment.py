"""Writes the shards of a group's assignment into the file that the agent reads."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pydantic import ValidationError

from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelReport, ModelState
from segserve_builder.errors import OtherVersionError
from segserve_common.files import replace_file
from segserve_common.kube.shards import content_of, unpack, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from segserve_builder.cluster.config_map_watch import ConfigMap


RejectedModels: TypeAlias = tuple[ModelReport, ...]
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


@dataclass(frozen=True, slots=True)
class _Part:
    """The models of one shard, and the reports of those that cannot be parsed."""

    models: tuple[AssignedModel, ...]
    rejected: RejectedModels


class AssignmentInbox:
    """Writes the assignment to `path` after every change, once all shards have been read, and calls `on_change`.

    A revision that cannot be read is rejected: the model keeps its last valid revision and does not delay others;
    `on_change` gets the reports about such models.
    """

    def __init__(self, names: Sequence[str], path: Path, on_change: Callable[[RejectedModels], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._last_valid: dict[str, AssignedModel] = {}
        self._shards = ShardInbox(names, self._read, self._deliver)

    def take(self, name: str, config_map: ConfigMap | None) -> None:
        """Read the ConfigMap of the shard `name`, None if it was deleted."""
        self._shards.take(name, config_map)

    def _read(self, value: Any) -> _Part:
        if not isinstance(value, list):
            raise ValueError(f"a shard is a list of models, got {type(value).__name__}")
        models, rejected = [], []
        for plain in value:
            try:
                assigned = AssignedModel.model_validate(plain)
            except ValidationError as error:
                rejection = _rejection(plain, error)
                last_valid = self._last_valid.get(rejection.model)
                # The name says that it is what is loaded: nothing of it has to be read.
                if last_valid is None or last_valid.revision != rejection.revision:
                    rejected.append(rejection)
                if last_valid is not None:
                    models.append(last_valid)
            else:
                self._last_valid[assigned.model] = assigned
                models.append(assigned)
        return _Part(tuple(models), tuple(rejected))

    def _deliver(self, shards: tuple[Shard[_Part], ...]) -> None:
        models = sorted((model for shard in shards for model in shard.value.models), key=lambda each: each.model)
        replace_file(self._path, json.dumps(Assignment(models=tuple(models)).to_json()))
        # Models that are no longer assigned must not come back with an old revision.
        self._last_valid = {model.model: model for model in models}
        self._on_change(tuple(rejection for shard in shards for rejection in shard.value.rejected))


def _rejection(plain: Any, error: ValidationError) -> ModelReport:
    """Return the report of a model that cannot be parsed; raises `error` if it has no readable names."""
    try:
        model, revision = str(plain["pipeline"]["model"]), str(plain["revision"])
    except (KeyError, TypeError):
        raise error from None
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = f"this server's segserve is of another version and cannot read it: {where}: {first['msg']}"
    return ModelReport(
        model=model, revision=revision, state=ModelState.FAILED, reason=OtherVersionError.reason, message=message
    )
