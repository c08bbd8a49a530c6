"""Who owns which field of an object: server-side apply and merge patches as an API server understands them."""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
Step: TypeAlias = tuple[str, Any]
"""One step of a path: a field ("f", name), an item of a list ("k", its keys) or of a set ("v", the value)."""
Path: TypeAlias = tuple[Step, ...]

# Lists whose items have a name of their own, as the schemas of the kinds that we write say.
KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
}
SETS = ("finalizers",)


def copied(value: Any) -> Any:
    """Return a JSON value that shares nothing with the one given."""
    # The fastest copy there is, and most of what these tests do; version 2 of the format keeps no references.
    return marshal.loads(marshal.dumps(value, 2))


def merged(live: Any, patch: Any) -> Any:
    """Return what RFC 7386 makes of a value and a merge patch."""
    if not isinstance(patch, dict):
        return copied(patch)
    into = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = merged(into.get(key), value)
    return into


def _key(name: str, item: Any) -> Step | None:
    """Return the step that leads to an item of the list of this name; None where the list is one value."""
    if name in SETS:
        return "v", item
    keys = _ports(item) if name == "ports" else KEYS.get(name)
    return ("k", tuple((key, item.get(key)) for key in keys)) if keys and isinstance(item, dict) else None


def _ports(item: Any) -> tuple[str, ...] | None:
    # Those of a NetworkPolicy have neither key unless they are a Service's or a container's.
    if not isinstance(item, dict):
        return None
    return ("containerPort", "protocol") if "containerPort" in item else ("port", "protocol")


def leaves(value: Any, at: Path = ()) -> dict[Path, Any]:
    """Return the owned paths of a manifest with their values; an item of a list is a path too, of value None."""
    if isinstance(value, dict) and value:
        found: dict[Path, Any] = {}
        for name, item in value.items():
            found |= leaves(item, (*at, ("f", name)))
        return found
    steps = _steps(at, value)
    if steps is None:
        return {at: value}
    found = {}
    for step, item in zip(steps, value, strict=True):
        found[(*at, step)] = None
        if step[0] == "k":
            found |= leaves(item, (*at, step))
    return found


def _steps(at: Path, value: Any) -> list[Step] | None:
    if not at or not isinstance(value, list) or not value:
        return None
    steps = [_key(str(at[-1][1]), item) for item in value]
    return [step for step in steps if step is not None] if None not in steps else None


def applied(live: Any, manifest: Any, at: Path = ()) -> Any:
    """Return a live value with all that a manifest says; items of lists are found by their keys."""
    if isinstance(manifest, dict):
        into = dict(live) if isinstance(live, dict) else {}
        for name, value in manifest.items():
            into[name] = applied(into.get(name), value, (*at, ("f", name)))
        return into
    steps = _steps(at, manifest)
    if steps is None:
        return copied(manifest)
    items = dict(zip(_steps(at, live) or [], live or [], strict=False))
    for step, item in zip(steps, manifest, strict=True):
        items[step] = applied(items.get(step), item, (*at, step)) if step[0] == "k" else item
    return list(items.values())


def without(value: Any, paths: Iterable[Path], at: Path = ()) -> Any:
    """Return a value without these paths, and without what is empty then."""
    gone = set(paths)
    if isinstance(value, dict):
        named: dict[Step, Any] = {("f", name): item for name, item in value.items()}
        return {step[1]: item for step, item in _kept(named, gone, at).items()}
    steps = _steps(at, value)
    if steps is None:
        return value
    return list(_kept(dict(zip(steps, value, strict=True)), gone, at).values())


def _kept(children: Mapping[Step, Any], gone: set[Path], at: Path) -> dict[Step, Any]:
    kept = {}
    for step, item in children.items():
        path = (*at, step)
        if path in gone:
            continue
        below = any(other[: len(path)] == path for other in gone)
        left = without(item, gone, path) if below else item
        if left or not below:
            kept[step] = left
    return kept


class Owners:
    """The paths that each field manager owns in one object."""

    def __init__(self) -> None:
        self._owned: dict[tuple[str, str], set[Path]] = {}

    def copy(self) -> Owners:
        """Return owners of their own."""
        other = Owners()
        other._owned = {owner: set(paths) for owner, paths in self._owned.items()}
        return other

    def apply(self, manager: str, live: Json, manifest: Json) -> Json:
        """Return what becomes of a live object when a manager applies this with force."""
        said = leaves(manifest)
        mine = (manager, "Apply")
        given_up = self._owned.get(mine, set()) - said.keys()
        self._owned[mine] = set(said)
        others = {path for owner, paths in self._owned.items() if owner != mine for path in paths}
        # An item of a list stays for as long as anybody owns anything in it.
        gone = {path for path in given_up if not any(other[: len(path)] == path for other in others)}
        result: Json = applied(without(live, gone) if gone else live, manifest)
        self._take_over(mine, live, result)
        return result

    def update(self, manager: str, live: Json, result: Json) -> None:
        """Note that a manager's create or patch made this of a live object."""
        mine = (manager, "Update")
        after = leaves(result)
        changed = self._take_over(mine, live, result)
        self._owned[mine] = (self._owned.get(mine, set()) | changed) & after.keys()

    def _take_over(self, mine: tuple[str, str], live: Json, result: Json) -> set[Path]:
        before, after = leaves(live), leaves(result)
        changed = {path for path, value in after.items() if path not in before or before[path] != value}
        for owner, paths in self._owned.items():
            if owner != mine:
                self._owned[owner] = {path for path in paths if path in after and path not in changed}
        return changed
