"""Changes of a model's classes that would mislead callers who know the old ones."""

from __future__ import annotations

from collections.abc import Sequence

from segserve_builder.spec.model_spec import ModelClass


def class_changes(stable: Sequence[ModelClass], new: Sequence[ModelClass]) -> list[str]:
    """Return a sentence for every class of `stable` that `new` drops or renumbers, in the order of `stable`.

    Classes are identified by name: a renamed class counts as dropped. Additional classes are not reported.
    """
    ids = {item.name: item.id for item in new}
    names = {item.id: item.name for item in new}
    return [_change(item, ids, names) for item in stable if ids.get(item.name) != item.id]


def _change(old: ModelClass, ids: dict[str, int], names: dict[int, str]) -> str:
    if old.name in ids:
        return f"class {old.name!r} is renumbered from {old.id} to {ids[old.name]}"
    if old.id in names:
        return f"class {old.name!r} is dropped; its id {old.id} now means {names[old.id]!r}"
    return f"class {old.name!r} (id {old.id}) is dropped"
