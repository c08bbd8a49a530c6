"""Errors of platforms, one class per cause, each message with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from segserve.errors import MissingExtraError
from segserve_common.errors import SegserveError

INSTALL: Final = "helm install segserve charts/segserve --namespace segserve --create-namespace"
REFUSED: Final = "the API server refuses it: "


class ControlError(SegserveError):
    """A platform cannot do what was asked; the text says what was seen and what helps."""


class NotFoundError(ControlError):
    """There is no resource of that kind and name, or no such namespace."""


class InvalidResourceError(ControlError):
    """A resource that cannot be used: the text has a line for each field that is wrong, with what is allowed."""


class ConflictError(ControlError):
    """Another has set the same fields, or changed the resource meanwhile."""


class ForbiddenError(ControlError):
    """The user may not do this."""


class NotInstalledError(ControlError):
    """The cluster does not know the kind."""


class NoPlatformError(ControlError):
    """Nothing says how to reach a cluster, or it cannot be read; or no platform is up here."""


class PlatformUnreachableError(ControlError):
    """The API server does not answer."""


class NotServingError(ControlError):
    """A model's newest spec, or a rollout, cannot come to what was waited for without a change."""


class WaitTimeoutError(ControlError):
    """What was waited for has not come in time; nothing was undone."""


def no_kubeconfig(seen: str) -> NoPlatformError:
    """Return the error of a cluster that nothing names well."""
    return NoPlatformError(
        f"{seen}; --kubeconfig FILE or KUBECONFIG names a cluster, --local this machine (`segserve up` starts it)"
    )


def unreachable(server: str, context: str, seen: str) -> PlatformUnreachableError:
    """Return the error of an API server that does not answer."""
    return PlatformUnreachableError(
        f"{server} of context {context!r} does not answer: {seen}; is the cluster up, and is it the one you mean "
        "(--context NAME names another)?"
    )


def not_installed(kind: str, context: str) -> NotInstalledError:
    """Return the error of a cluster without the kind."""
    return NotInstalledError(
        f"the cluster of context {context!r} does not know {kind}; install segserve there: {INSTALL}"
    )


def forbidden(said: str) -> ForbiddenError:
    """Return the error of a user without the right."""
    return ForbiddenError(
        f"{said}; ask who runs the cluster for the role `edit` in this namespace (to look, `view` is enough): "
        "segserve's chart adds its resources to both"
    )


def refused(said: str) -> InvalidResourceError:
    """Return the error of content that the API server does not take."""
    return InvalidResourceError(f"{REFUSED}{said}")


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into a `MissingExtraError` that has the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"this needs {error.name}: pip install 'segserve[{extra}]'") from error
