"""Which cluster, as whom, in which namespace: kubeconfig files as kubectl reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig
from lightkube.config.models import NameValue, User, UserExec
from lightkube.core.exceptions import ConfigError
from msgspec.structs import replace

from segserve.platforms.errors import no_kubeconfig

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

    from segserve.platforms.port import Cluster

# lightkube speaks the older name of what is the same exchange for a token.
_EXEC: Final = "client.authentication.k8s.io/v1"
_EXEC_KNOWN: Final = "client.authentication.k8s.io/v1beta1"


def config_of(place: Cluster) -> SingleConfig:
    """Return the context that is meant, with the user's own namespace if one is named; raises `NoPlatformError`."""
    files = _files(place)
    if not files and place.context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return _prepared(_read(None, None), place)
    if not files:
        raise no_kubeconfig("there is no kubeconfig")
    contexts: list[str] = []
    for file in files:
        found = _read(file, place.context)
        if isinstance(found, list):
            contexts += found
            continue
        return _prepared(found, place)
    if place.context is not None:
        known = ", ".join(sorted(contexts)) or "none"
        raise no_kubeconfig(f"no context {place.context!r} in {', '.join(map(str, files))}; there are: {known}")
    raise no_kubeconfig(f"{', '.join(map(str, files))} names no current context")


def _files(place: Cluster) -> list[Path]:
    if place.kubeconfig is not None:
        return [place.kubeconfig]
    named = [Path(name) for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    usual = Path(DEFAULT_KUBECONFIG).expanduser()
    return named or ([usual] if usual.is_file() else [])


def _read(file: Path | None, context: str | None) -> SingleConfig | list[str]:
    """Return the context of a file (the pod's own without one), or the names of those it has where it is not there."""
    try:
        config = KubeConfig.from_service_account() if file is None else KubeConfig.from_file(file)
        chosen = context or config.current_context or (next(iter(config.contexts)) if file is None else None)
        if chosen is None or (context is not None and chosen not in config.contexts):
            return list(config.contexts)
        found = config.get(chosen)
    except (ConfigError, KeyError, TypeError, ValueError, OSError, yaml.YAMLError) as error:
        said = f"has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise no_kubeconfig(f"{file or 'the service account'} is no kubeconfig: {said}") from error
    assert found is not None, "there is no default that could be None"
    return found


def _prepared(found: SingleConfig | list[str], place: Cluster) -> SingleConfig:
    assert not isinstance(found, list), "a pod's own configuration has one context"
    namespace = place.namespace or found.namespace
    return found._replace(context=replace(found.context, namespace=namespace), user=_user(found.user))


def _user(user: User | None) -> User:
    if user is None:
        return User()
    if user.exec is None or user.exec.apiVersion != _EXEC:
        return user
    asked = {"apiVersion": _EXEC, "kind": "ExecCredential", "spec": {"interactive": False}}
    told = NameValue(name="KUBERNETES_EXEC_INFO", value=json.dumps(asked))
    known = UserExec(
        apiVersion=_EXEC_KNOWN,
        command=user.exec.command,
        args=user.exec.args,
        env=[*(user.exec.env or []), told],
        installHint=user.exec.installHint,
    )
    return replace(user, exec=known)
