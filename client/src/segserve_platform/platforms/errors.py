"""Errors of platforms, one class per cause, each message with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from segserve.errors import MissingExtraError
from segserve_common.api_errors import ConflictError, ForbiddenError, NotFoundError
from segserve_common.errors import ControlError

__all__ = [
    "ConflictError",
    "ControlError",
    "ForbiddenError",
    "InvalidResourceError",
    "NoPlatformError",
    "NotFoundError",
    "NotInstalledError",
    "NotServingError",
    "PlatformUnreachableError",
    "WaitTimeoutError",
    "forbidden",
    "needs",
    "no_kubeconfig",
    "not_installed",
    "refused",
    "unreachable",
]

INSTALL: Final = "helm install segserve charts/segserve --namespace NAMESPACE --create-namespace (it works in that one)"
REFUSED: Final = "rejected by the API server: "


class InvalidResourceError(ControlError):
    """A resource is invalid; the message has a line per invalid field with the allowed values."""


class NotInstalledError(ControlError):
    """The cluster does not have the custom resource definition."""


class NoPlatformError(ControlError):
    """No platform is up on this machine, or no usable kubeconfig selects a cluster."""


class PlatformUnreachableError(ControlError):
    """The API server does not respond."""


class NotServingError(ControlError):
    """A model's newest spec, or a rollout, cannot succeed without a further change."""


class WaitTimeoutError(ControlError):
    """The condition did not come true within the timeout; nothing was undone."""


def no_kubeconfig(seen: str) -> NoPlatformError:
    """Return the error of a missing or unusable kubeconfig."""
    return NoPlatformError(
        f"{seen}; select a cluster with --kubeconfig FILE or KUBECONFIG, or this machine with --local (`segserve up`)"
    )


def unreachable(server: str, context: str, seen: str) -> PlatformUnreachableError:
    """Return the error of an API server that does not respond."""
    return PlatformUnreachableError(
        f"{server} of context {context!r} does not respond: {seen}; check that the cluster is up, or select another "
        "one with --context NAME"
    )


def not_installed(kind: str, context: str) -> NotInstalledError:
    """Return the error of a cluster without the custom resource definition."""
    return NotInstalledError(
        f"the cluster of context {context!r} has no {kind} resources; install segserve there: {INSTALL}"
    )


def forbidden(said: str) -> ForbiddenError:
    """Return the error of a missing permission."""
    return ForbiddenError(
        f"{said}; ask the cluster's administrator for the role `edit` in this namespace (`view` suffices for reading): "
        "segserve's chart adds its resources to both"
    )


def refused(said: str) -> InvalidResourceError:
    """Return the error of a resource that the API server rejects."""
    return InvalidResourceError(f"{REFUSED}{said}")


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into a `MissingExtraError` with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"this needs {error.name}: pip install 'segserve[{extra}]'") from error
