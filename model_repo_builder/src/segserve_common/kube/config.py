"""Which cluster, as whom, in which namespace: kubeconfig files and service accounts, by the official loaders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from kubernetes.config.config_exception import ConfigException

from segserve_common.api_errors import UnavailableError
from segserve_common.http.urls import is_proxied

if TYPE_CHECKING:
    from kubernetes.client.configuration import Configuration

IN_CLUSTER: Final = "in-cluster"
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubeConfigError(Exception):
    """A kubeconfig, or a pod's service account, that cannot be used."""


@dataclass(frozen=True, slots=True)
class KubeContext:
    """One context of a kubeconfig file; without `file`, the service account of this pod."""

    name: str
    namespace: str
    server: str
    file: Path | None = None
    content: Any = None

    def configuration(self) -> Configuration:
        """Return the official synchronous client's configuration; runs the user's credential plugin, if any."""
        # The asynchronous client has loaders of its own, and no use for this connection pool.
        from kubernetes.client.configuration import Configuration

        # Without a proxy of the environment, unless the kubeconfig names one.
        configuration = Configuration() if is_proxied(self.server) else Configuration(proxy="")
        if self.file is None:
            from kubernetes.config.incluster_config import load_incluster_config

            load_incluster_config(configuration)
            return configuration
        # It imports OAuth, which pods have no need of.
        from kubernetes.config.kube_config import KubeConfigLoader

        loader = KubeConfigLoader(self.content, self.name, config_base_path=str(self.file.parent))
        loader.load_and_set(configuration)
        if self.token_file is not None:
            configuration.refresh_api_key_hook = self.read_token_file
        self.check_credentials(configuration)
        return configuration

    @property
    def token_file(self) -> Path | None:
        """The file that the user's token is read from, if it is not in the kubeconfig itself."""
        user = self._user()
        if self.file is None or user.get("token") or not user.get("tokenFile"):
            return None
        return self.file.parent / str(user["tokenFile"])

    def read_token_file(self, configuration: Any) -> None:
        """Put the current token into a configuration: the file's writer renews it."""
        assert self.token_file is not None, "it is called only if there is one"
        configuration.api_key["BearerToken"] = f"Bearer {self.token_file.read_text().strip()}"

    def check_credentials(self, configuration: Any) -> None:
        """Raise `KubeConfigError` if a credential plugin gave nothing: the official loader only logs its failure."""
        plugin = (self._user().get("exec") or {}).get("command")
        if plugin and not (configuration.api_key or configuration.cert_file):
            raise KubeConfigError(f"the credential plugin {plugin!r} gave neither a token nor a certificate")

    def _user(self) -> Any:
        if self.file is None:
            return {}
        name = _named(self.content, "contexts", self.name)["context"].get("user")
        return next((user.get("user") or {} for user in self.content.get("users") or () if user["name"] == name), {})


def kubeconfig_files(named: Path | None = None) -> list[Path]:
    """Return the files to read: the named one, else the files in `$KUBECONFIG`, else `~/.kube/config` if it exists."""
    if named is not None:
        return [named]
    from_environment = [Path(name) for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    default = Path("~/.kube/config").expanduser()
    return from_environment or ([default] if default.is_file() else [])


def in_cluster_context() -> KubeContext | None:
    """Return the service account of this pod; None outside of a cluster."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (_SERVICE_ACCOUNT / "token").is_file():
        return None
    namespace = _SERVICE_ACCOUNT / "namespace"
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return KubeContext(IN_CLUSTER, namespace.read_text().strip() if namespace.is_file() else "default", server)


def read_context(file: Path, name: str | None = None) -> KubeContext | list[str]:
    """Return a context of a file, the current one if none is named; the names of its contexts if it lacks that one.

    Raises `KubeConfigError`, whose text names the file, for one that cannot be read.
    """
    try:
        content = yaml.safe_load(file.read_text())
        names = [context["name"] for context in content["contexts"] or ()]
        name = name or content.get("current-context")
        if not name or name not in names:
            return names
        context = _named(content, "contexts", name)["context"]
        cluster = _named(content, "clusters", context["cluster"])["cluster"]
        return KubeContext(name, context.get("namespace") or "default", cluster["server"], file.absolute(), content)
    except (KeyError, TypeError, ValueError, OSError, yaml.YAMLError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise KubeConfigError(f"{file} is not a kubeconfig: {problem}") from error


def default_context() -> KubeContext:
    """Return the service account of this pod, or, outside of a cluster, the current context of the kubeconfig."""
    if (in_cluster := in_cluster_context()) is not None:
        return in_cluster
    for file in kubeconfig_files():
        if isinstance(context := read_context(file), KubeContext):
            return context
    raise KubeConfigError("there is neither a service account nor a kubeconfig with a current context")


def authorization(configuration: Configuration) -> dict[str, str]:
    """Return the header that authenticates a request; an expired token is read again."""
    try:
        token = configuration.get_api_key_with_prefix("BearerToken")
    except (ConfigException, OSError) as error:
        raise UnavailableError(f"the token cannot be read: {error}") from error
    return {"Authorization": token} if token else {}


def _named(content: Any, section: str, name: str) -> Any:
    for each in content[section] or ():
        if each["name"] == name:
            return each
    raise KeyError(name)
