"""Notifications of one pool: the targets that its spec names, and the events of its rollouts as messages."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from segserve_operator.adapters.notify.messages import Message, Secret, Target
from segserve_operator.adapters.notify.notifier import Notifier
from segserve_operator.api.triton_pool import TritonPoolSpec
from segserve_operator.core.models.events import Event
from segserve_operator.core.rollout.record import RolloutState


@dataclass(frozen=True, slots=True)
class PoolAnnouncer:
    """Sends the events of a pool's rollouts to its current targets. `clock` returns Unix time in seconds."""

    notifier: Notifier
    namespace: str
    targets: Callable[[], Collection[Target]]
    clock: Callable[[], float]

    def announce(self, model: str, state: RolloutState, events: Collection[Event], url: str) -> None:
        """Queue a message for each event, and return at once."""
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


def targets(spec: TritonPoolSpec, namespace: str) -> tuple[Target, ...]:
    """Return the targets that a pool names; their Secrets are in the pool's own namespace."""
    return tuple(
        Target(each.url or "", each.format)
        if each.secret_ref is None
        else Target(format=each.format, secret=Secret(namespace, each.secret_ref.name, each.secret_ref.key))
        for each in spec.notifications
    )
