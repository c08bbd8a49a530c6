"""The cache of compiled kernels: beside their source, and keyed by everything that their code depends on.

numba alone refuses a cache that it cannot write, which is what an image run by another user has, and identifies a
kernel by the text of its own module, so that it would keep code that it once inlined from another. It also takes
settings from a file `.numba_config.yaml` of the current folder, which may name a cache, that is, pickles.
"""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numba
from numba.core import config
from numba.core.caching import CacheImpl, InTreeCacheLocator, UserProvidedCacheLocator, UserWideCacheLocator
from numba.core.registry import cpu_target

from segserve_builder.kernels.sources import compiled_digests

FOLDER: Final = Path(__file__).parent


class _OfKernels:
    """A locator for only the modules of this package."""

    _py_file: str

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        """Return the locator if its folder can be used, else None: numba then tries the next one."""
        own = Path(py_file).parent == FOLDER
        return super().from_function(py_func, py_file) if own else None  # type: ignore[misc]

    def get_source_stamp(self) -> str:
        """Return what a compiled kernel was made of: it is compiled again if that has changed."""
        return _digests()[Path(self._py_file).stem]


class _BesideSource(_OfKernels, InTreeCacheLocator):  # type: ignore[misc]
    """Beside the source: writable, or read-only if everything is compiled already."""

    def ensure_cache_path(self) -> None:
        """Raise `OSError` if the folder can neither be written nor needs to be."""
        if not _is_complete():
            super().ensure_cache_path()


class _Configured(_OfKernels, UserProvidedCacheLocator):  # type: ignore[misc]
    """Below NUMBA_CACHE_DIR."""


class _AtHome(_OfKernels, UserWideCacheLocator):  # type: ignore[misc]
    """Below the user's own cache folder."""


def use() -> None:
    """Use these locators for the kernels of this package only, and no settings of the current folder."""
    config._config_fname = ""
    config.reload_config()
    CacheImpl._locator_classes[:0] = [_BesideSource, _Configured, _AtHome]


def mark_complete() -> None:
    """Record that all kernels are compiled for this processor, so that the cache may be read-only from now on."""
    marker = _marker()
    marker.parent.mkdir(exist_ok=True)
    marker.touch()


@lru_cache
def _is_complete() -> bool:
    return _marker().exists()


def _marker() -> Path:
    """Return the marker file, named after sources, Python, numba and processor (or NUMBA_CPU_NAME)."""
    processor = cpu_target.target_context.codegen().magic_tuple()
    parts = repr((sys.version_info[:2], numba.__version__, processor, sorted(_digests().items())))
    return FOLDER / "__pycache__" / f"complete-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


@lru_cache
def _digests() -> dict[str, str]:
    return compiled_digests(FOLDER)
