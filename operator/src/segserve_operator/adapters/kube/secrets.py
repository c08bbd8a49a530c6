"""Reads single values of the Secrets that the operator may read by name."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segserve_common.api_errors import ApiError
from segserve_common.kube.kinds import SECRETS
from segserve_operator.adapters.notify.notifier import SecretError

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.notify.messages import Secret


@dataclass(frozen=True, slots=True)
class Secrets:
    """Reads from the API server on every call, so that no Secret is kept in memory."""

    api: Api

    async def read(self, secret: Secret) -> str:
        """Return a value as text; raises `SecretError`, whose message contains no part of the value."""
        title = f"secret {secret.namespace}/{secret.name}"
        try:
            item = await self.api.get(SECRETS, secret.namespace, secret.name)
        except ApiError as error:
            raise SecretError(f"{title}: {error}; the chart's rbac.notificationSecrets lets the operator") from error
        data = item.get("data") or {}
        if secret.key not in data:
            raise SecretError(f"{title} has no key {secret.key!r}")
        try:
            return base64.b64decode(data[secret.key]).decode()
        except ValueError as error:
            raise SecretError(f"{title}: {secret.key!r} is no text") from error
