"""Kubernetes as operator, agents, sidecars and command line use it: kinds, names, one client, one watch.

The official package imports both of its clients, leader election and web sockets as soon as any part of it is needed:
0.5 s of CPU and 25 MiB, in every pod and every command. Its packages are made lazy here, so that a part is imported
when it is used.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec, module_from_spec
from typing import Any, Final

_LAZY: Final = (
    "kubernetes",
    "kubernetes.config",
    "kubernetes.utils",
    "kubernetes.aio",
    "kubernetes.aio.config",
    "kubernetes.aio.utils",
)


def _make_lazy(name: str) -> None:
    """Register a package without running its `__init__`; its modules are imported on first use."""
    spec = find_spec(name) if name not in sys.modules else None
    if spec is None:
        return

    def attribute_of(attribute: str) -> Any:
        try:
            return importlib.import_module(f"{name}.{attribute}")
        except ModuleNotFoundError:
            # Not a module: other code in this process gets the whole package, as it would without us.
            if loader is not None and "__getattr__" in vars(package):
                del package.__getattr__
                loader.exec_module(package)
            return getattr(package, attribute)

    package = module_from_spec(spec)
    loader = spec.loader
    package.__getattr__ = attribute_of  # type: ignore[method-assign]
    sys.modules[name] = package
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, package)


# If the package was already imported as a whole, there is nothing left to save.
if "kubernetes" not in sys.modules and find_spec("kubernetes") is not None:
    for _package in _LAZY:
        _make_lazy(_package)
