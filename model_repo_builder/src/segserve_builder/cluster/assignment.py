"""Writes the shards of a group's assignment into the file that the agent reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelReport, ModelState
from segserve_builder.cluster.shard_inbox import Shard, ShardInbox
from segserve_builder.errors import OtherVersionError
from segserve_common.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from segserve_builder.cluster.config_map_watch import ConfigMap

RejectedModels: TypeAlias = tuple[ModelReport, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """The models of one shard, and the reports of those that cannot be parsed."""

    models: tuple[AssignedModel, ...]
    rejected: RejectedModels


class AssignmentInbox:
    """Writes the assignment to `path` after every change, once all shards have been read, and calls `on_change`.

    A revision whose answers depend on a field that this version of segserve does not know is rejected: the model keeps
    its last valid revision and does not delay others; `on_change` gets the reports about such models.
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
                assigned = AssignedModel.read(plain)
                if not assigned.is_understood:
                    AssignedModel.model_validate(plain)  # which says what is not known
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
