"""Which kernel modules import which, what imports them, and digests of what their compiled code depends on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_IMPORT: Final = re.compile(r"^from segserve_builder\.kernels\.(\w+) import", re.MULTILINE)
_KERNELS: Final = "segserve_builder.kernels."
_ANY_IMPORT: Final = re.compile(r"^\s*from (segserve_builder\.[\w.]+) import", re.MULTILINE)


def module_imports(folder: Path) -> dict[str, frozenset[str]]:
    """Return, for each module of a folder of kernels, the modules beside it that it imports."""
    texts = _texts(folder)
    return {name: frozenset(_IMPORT.findall(text)) & texts.keys() for name, text in texts.items()}


def with_imports(names: Iterable[str], imports: Mapping[str, frozenset[str]]) -> set[str]:
    """Return modules with the modules that they import, directly or not."""
    needed: set[str] = set()
    left = set(names)
    while left:
        module = left.pop()
        needed.add(module)
        left |= imports[module] - needed
    return needed


def kernels_behind(modules: Iterable[str], package: Path) -> set[str]:
    """Return the kernel modules that modules of the package import, directly or not, also within a function.

    Packages themselves are not followed: registries import all there is.
    """
    texts = {
        f"{'.'.join(folder.relative_to(package.parent).parts)}.{name}": text
        for folder in package.rglob("*")
        if folder.is_dir()
        for name, text in _texts(folder).items()
    }
    imports = {module: frozenset(_ANY_IMPORT.findall(text)) & texts.keys() for module, text in texts.items()}
    needed = with_imports(texts.keys() & set(modules), imports)
    return {module.removeprefix(_KERNELS) for module in needed if module.startswith(_KERNELS)}


def compiled_digests(folder: Path) -> dict[str, str]:
    """Return, for each module of a folder of kernels, the sha256 of all that its compiled code is made of.

    That is its own text and the texts of modules that it imports, directly or not, whose kernels and constants are
    inlined.
    """
    texts, imports = _texts(folder), module_imports(folder)
    digests = {}
    for name in texts:
        parts = "".join(f"{module}\0{texts[module]}\0" for module in sorted(with_imports({name}, imports)))
        digests[name] = hashlib.sha256(parts.encode()).hexdigest()
    return digests


def _texts(folder: Path) -> dict[str, str]:
    return {
        path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py") if not path.stem.startswith("__")
    }
