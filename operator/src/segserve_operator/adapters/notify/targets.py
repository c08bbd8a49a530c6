"""Reads whom to tell from a pool's resource."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_operator.adapters.notify.messages import Secret, Target

if TYPE_CHECKING:
    from segserve_operator.api.triton_pool import Notification, TritonPoolSpec


def targets(spec: TritonPoolSpec, namespace: str) -> tuple[Target, ...]:
    """Return the targets that a pool names; its Secrets are of its own namespace."""
    return tuple(_target(each, namespace) for each in spec.notifications)


def _target(named: Notification, namespace: str) -> Target:
    if named.secret_ref is None:
        return Target(named.url or "", named.format)
    return Target(format=named.format, secret=Secret(namespace, named.secret_ref.name, named.secret_ref.key))
