"""Interning of assigned models: a spec, its record and the servers' assignments have thousands of equal ones."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import AssignedModel


class ModelInterner:
    """Returns one instance for equal models, which saves memory and makes comparing them fast."""

    def __init__(self) -> None:
        self._models: WeakValueDictionary[str, AssignedModel] = WeakValueDictionary()

    def intern(self, model: AssignedModel) -> AssignedModel:
        """Return the interned model that equals this one, or else intern this one."""
        interned = self._models.get(model.revision)
        # The same revision may have another artifact URI.
        if interned is not None and interned == model:
            return interned
        self._models[model.revision] = model
        return model
