"""What a cluster can refuse or lack, each with what to do about it."""

from __future__ import annotations

from typing import Final

from segserve.cli.failures import CommandError

INSTALL: Final = "helm install segserve charts/segserve --namespace segserve --create-namespace"
REFUSED: Final = "the API server refuses it: "


class ClusterError(CommandError):
    """A cluster cannot do what was asked."""


class NoKubeconfigError(ClusterError):
    """Nothing says how to reach a cluster, or it cannot be read."""

    def __init__(self, seen: str) -> None:
        super().__init__(
            f"{seen}; --kubeconfig FILE or KUBECONFIG names a cluster, --local this machine (`segserve up` starts it)"
        )


class UnreachableError(ClusterError):
    """The API server does not answer."""

    def __init__(self, server: str, context: str, seen: str) -> None:
        super().__init__(
            f"{server} of context {context!r} does not answer: {seen}; is the cluster up, and is it the one you mean "
            "(--context NAME names another)?"
        )


class UnknownError(ClusterError):
    """There is no such object, or no such namespace."""


class NotInstalledError(ClusterError):
    """The cluster does not know the kind."""

    def __init__(self, kind: str, context: str) -> None:
        super().__init__(f"the cluster of context {context!r} does not know {kind}; install segserve there: {INSTALL}")


class ForbiddenError(ClusterError):
    """The user may not do this."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"{said}; ask who runs the cluster for the role `edit` in this namespace (to look, `view` is enough): "
            "segserve's chart adds its resources to both"
        )


class RefusedError(ClusterError):
    """The API server refuses the content."""

    def __init__(self, said: str) -> None:
        super().__init__(f"{REFUSED}{said}")


class ConflictError(ClusterError):
    """Another has set the same fields, or changed the object meanwhile."""
