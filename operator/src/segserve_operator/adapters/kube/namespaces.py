"""The namespaces in which the operator of a whole cluster works; it reads the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_common.kube.kinds import NAMESPACES
from segserve_common.kube.names import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey, View

ENABLED_LABEL: Final = f"{DOMAIN}/enabled"
ENABLED: Final = {ENABLED_LABEL: "true"}


class EnabledNamespaces:
    """The namespaces `named` by the settings, and namespaces with the label `ENABLED`.

    The label is a wish, which this process honours; whether it may write there is up to the namespace's RoleBinding.
    """

    def __init__(self, named: Iterable[str]) -> None:
        self._named = frozenset(named)
        self._labelled: set[str] = set()

    def __contains__(self, namespace: object) -> bool:
        return namespace in self._named or namespace in self._labelled

    def add(self, namespace: str) -> bool:
        """Add a namespace that has the label; return whether it is new."""
        new = namespace not in self
        self._labelled.add(namespace)
        return new

    def discard(self, namespace: str) -> None:
        """Remove a namespace that has lost the label, or is gone."""
        self._labelled.discard(namespace)

    async def read(self, api: Api) -> frozenset[str]:
        """Read which namespaces have the label, and return the new ones."""
        found = {item["metadata"]["name"] for item in await api.list(NAMESPACES, None, ENABLED)}
        self._labelled.intersection_update(found)
        return frozenset(name for name in sorted(found) if self.add(name))


def pools_within(view: View, namespaces: Iterable[str]) -> frozenset[PoolKey]:
    """Return the pools of some namespaces that have any object."""
    names = frozenset(namespaces)
    return frozenset(key for key in view.pools() if key.namespace in names)
