"""Reads single values of Secrets that the operator was allowed to read by name."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segserve_common.kube.errors import ApiError
from segserve_common.kube.kinds import SECRETS
from segserve_operator.adapters.notify.notifier import SecretError

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.notify.messages import Secret


@dataclass(frozen=True, slots=True)
class Secrets:
    """Asks the API server each time: nothing of a Secret is kept."""

    api: Api

    async def read(self, secret: Secret) -> str:
        """Return a value as text; raises `SecretError`, whose text has nothing of the value."""
        named = f"secret {secret.namespace}/{secret.name}"
        try:
            found = await self.api.get(SECRETS, secret.namespace, secret.name)
        except ApiError as error:
            raise SecretError(f"{named}: {error}; the chart's rbac.notificationSecrets lets the operator") from error
        data = found.get("data") or {}
        if secret.key not in data:
            raise SecretError(f"{named} has no key {secret.key!r}; there are: {', '.join(sorted(data)) or 'none'}")
        try:
            return base64.b64decode(data[secret.key]).decode()
        except ValueError as error:
            raise SecretError(f"{named}: {secret.key!r} is no text") from error
