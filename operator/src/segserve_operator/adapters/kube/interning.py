"""Equal revisions as one value: the spec, its record and what servers were told are thousands of equal models."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import AssignedModel


class ModelInterner:
    """Gives the value first seen for each equal one, as long as somebody has it: kept once, and compared at once."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, AssignedModel] = WeakValueDictionary()

    def same(self, model: AssignedModel) -> AssignedModel:
        """Return the known model that equals this one, or this one."""
        known = self._known.get(model.revision)
        if known is not None and known == model:
            return known
        self._known[model.revision] = model
        return model
