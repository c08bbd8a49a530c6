"""From a group's assignment shards to the file that the agent reads."""

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
    """What one shard says: the models to hold, and what is to be reported of those that cannot be read."""

    models: tuple[AssignedModel, ...]
    refused: RejectedModels


class AssignmentInbox:
    """Writes the assignment to `path` whenever a shard changed and all were read once, then calls `on_change`.

    A model that this version of segserve cannot read keeps its last good revision and holds no other up; `on_change`
    gets the reports that say so.
    """

    def __init__(self, names: Sequence[str], path: Path, on_change: Callable[[RejectedModels], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._known: dict[str, AssignedModel] = {}
        self._shards = ShardInbox(names, self._read, self._deliver)

    def take(self, name: str, config_map: ConfigMap | None) -> None:
        """Take in what the API says of the shard `name`."""
        self._shards.take(name, config_map)

    def _read(self, value: Any) -> _Part:
        if not isinstance(value, list):
            raise ValueError(f"a shard is a list of models, got {type(value).__name__}")
        models, refused = [], []
        for plain in value:
            try:
                told = AssignedModel.model_validate_json(json.dumps(plain))
            except ValidationError as error:
                refusal = _refusal(plain, error)
                refused.append(refusal)
                if refusal.model in self._known:
                    models.append(self._known[refusal.model])
            else:
                self._known[told.model] = told
                models.append(told)
        return _Part(tuple(models), tuple(refused))

    def _deliver(self, shards: tuple[Shard[_Part], ...]) -> None:
        models = sorted((model for shard in shards for model in shard.value.models), key=lambda told: told.model)
        text = Assignment(models=tuple(models)).model_dump_json(by_alias=True, exclude_none=True)
        replace_file(self._path, text)
        self._known = {told.model: told for told in models}
        self._on_change(tuple(refusal for shard in shards for refusal in shard.value.refused))


def _refusal(plain: Any, error: ValidationError) -> ModelReport:
    """Return the report of a model that cannot be read; ValueError where not even its names can."""
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
