"""Client of a kubeconfig context's API server, whose errors say what the user can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import urllib3
from kubernetes.client.configuration import Configuration

from segserve_common.api_errors import ApiError
from segserve_common.kube.client import WATCH_S, KubeClient, configuration_of
from segserve_common.kube.config import KubeConfigError, KubeContext
from segserve_common.kube.kinds import Kind
from segserve_platform.platforms.errors import (
    ConflictError,
    ControlError,
    NotFoundError,
    forbidden,
    no_kubeconfig,
    not_installed,
    refused,
    unreachable,
)


class ContextClient(KubeClient):
    """The requests of one command, in the namespace of its context."""

    field_manager = "segserve-cli"

    def __init__(
        self, context: str, configuration: Configuration, namespace: str, pool: urllib3.PoolManager | None = None
    ) -> None:
        # Longer than the server's own timeout of a watch, which ends it without an error for the user.
        super().__init__(configuration, namespace, silence_s=WATCH_S + 10, pool=pool)
        self.context = context

    @classmethod
    def connect(cls, context: KubeContext) -> ContextClient:
        """Return the client of a context; nothing is sent yet."""
        try:
            return cls(context.name, configuration_of(context), context.namespace)
        except (KubeConfigError, OSError) as error:
            raise no_kubeconfig(str(error)) from error

    def describe_error(self, error: ApiError, kind: Kind | None) -> ControlError:
        """Return the error with what the user can do about it; its text has the server's message."""
        message = error.server_message
        match error.status:
            case None:
                return unreachable(self.server, self.context, message)
            case 401:
                return forbidden(f"the credentials of context {self.context!r} are not accepted: {message}")
            case 403:
                return forbidden(message)
            case 404 if kind is not None and not error.details.get("name"):
                return not_installed(f"{kind.plural}.{kind.group}" if kind.group else kind.plural, self.context)
            case 404:
                return NotFoundError(message)
            case 409:
                return ConflictError(_conflict(error.causes, message))
            case 410:
                return error  # the watcher lists again
            case 400 | 413 | 415 | 422:
                return refused(_refused_fields(error.causes) or message)
            case status:
                return ControlError(f"{self.server} answered {status}: {message}")


def _refused_fields(causes: Sequence[Mapping[str, Any]]) -> str:
    """Return the rejected fields with their reasons, empty if the server names no fields."""
    # A cause's message repeats the value, and often the whole spec; the user has both in the file.
    lines = (f"{cause.get('field') or 'the resource'}: {cause['message']}" for cause in causes if cause.get("message"))
    return "; ".join(dict.fromkeys(lines))


def _conflict(causes: Sequence[Mapping[str, Any]], message: str) -> str:
    owned = [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]
    if not owned:
        return f"{message}; try again"
    fields = "; ".join(f"{cause.get('field', '?')} ({cause.get('message', 'conflict')})" for cause in owned)
    return (
        f"set by somebody else too: {fields}; change them there, or take them over with --force-conflicts (force=True)"
    )
