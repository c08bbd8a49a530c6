"""Between a pool's rollouts and those whom its spec names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segserve_operator.adapters.notify.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from segserve_operator.adapters.notify.messages import Target
    from segserve_operator.adapters.notify.notifier import Notifier
    from segserve_operator.core.models.events import Event
    from segserve_operator.core.rollout.record import RolloutState


@dataclass(frozen=True, slots=True)
class PoolAnnouncer:
    """Sends what becomes of the rollouts of one pool to its targets of now. `clock` returns Unix time in seconds."""

    notifier: Notifier
    namespace: str
    targets: Callable[[], Collection[Target]]
    clock: Callable[[], float]

    def announce(self, model: str, state: RolloutState, events: Collection[Event], url: str) -> None:
        """Take in what is to be told, and return at once."""
        targets = self.targets()
        for event in events if targets else ():
            message = Message(
                model=model,
                namespace=self.namespace,
                rollout=state.rollout,
                sequence=state.sequence,
                revision=state.revision,
                phase=state.phase.label,
                weight=state.weight,
                reason=event.reason,
                message=event.message,
                at_s=self.clock(),
                url=url,
            )
            self.notifier.send(targets, message)
