"""Compiles every kernel into its cache: `python -m segserve_builder.kernels`, once where the code is installed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from pathlib import Path

from segserve_builder import kernels


def compile_module(name: str) -> None:
    """Compile the kernels of a module: they have explicit signatures, so that importing it does that."""
    importlib.import_module(f"{kernels.__name__}.{name}")


def main() -> None:
    """Compile all modules side by side, the long ones first."""
    paths = [path for path in Path(kernels.__path__[0]).glob("*.py") if not path.stem.startswith("__")]
    names = [path.stem for path in sorted(paths, key=lambda path: path.stat().st_size, reverse=True)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(compile_module, names, chunksize=1)


if __name__ == "__main__":
    main()
