"""Compiles every kernel into its cache: `python -m segserve_builder.kernels`, once where the code is installed."""

from __future__ import annotations

import importlib
import pkgutil

from segserve_builder import kernels

if __name__ == "__main__":
    for module in pkgutil.iter_modules(kernels.__path__):
        # Kernels have explicit signatures: importing them is what compiles them.
        if module.name != "__main__":
            importlib.import_module(f"{kernels.__name__}.{module.name}")
