"""One name, one thing: public classes and how modules introduce themselves."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.same

ROOT = Path(__file__).parents[3]
SOURCES = [ROOT / "client/src", ROOT / "model_repo_builder/src", ROOT / "operator/src"]

# Triton looks for a class of this name in the file of each of its Python models.
GIVEN_BY_OTHERS = {"TritonPythonModel"}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for source in SOURCES:
        for path in sorted(source.rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_a_public_class_name_stands_in_one_module() -> None:
    homes = defaultdict(list)
    for path, module in modules():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path))

    shared = {name: paths for name, paths in homes.items() if len(paths) > 1 and name not in GIVEN_BY_OTHERS}

    assert len(homes) > 500
    assert shared == {}


def test_a_module_and_a_class_are_introduced_by_a_noun_or_a_verb() -> None:
    questions = [
        f"{path}:{getattr(node, 'lineno', 1)}"
        for path, module in modules()
        for node in [module, *(node for node in ast.walk(module) if isinstance(node, ast.ClassDef))]
        if (ast.get_docstring(node) or "").startswith("What ")
    ]

    assert questions == []
