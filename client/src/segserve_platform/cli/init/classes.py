"""The classes of a network: named by what comes with the file, or numbered."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from segserve_builder.families.base import Family
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.network import NetworkFile, Remark

KEYS: Final = ("names", "class_names", "classes", "labels", "id2label")
PLACE: Final = ("spec", "classes")
LONGEST: Final = 100


@dataclass(frozen=True)
class ClassNames:
    """Names in the order of their ids, and where they come from."""

    names: tuple[str, ...]
    origin: str

    @property
    def is_given(self) -> bool:
        """Whether the user gives the names."""
        return self.origin == "--classes"


@dataclass(frozen=True)
class Classes:
    """The resource's classes, with remarks."""

    entries: tuple[Mapping[str, Any], ...]
    remarks: tuple[Remark, ...]
    numbered: bool = False

    def with_background(self, number: int) -> Classes:
        """Return the classes with this one named background, which is not drawn."""
        text = f"class {number} covers most of your images' borders, and is taken for the background"
        entries = tuple({**each, "name": "background"} if each["id"] == number else each for each in self.entries)
        return replace(self, entries=entries, remarks=(*self.remarks, Remark(PLACE, text, sure=False)))


def names_of(network: NetworkFile, given: str | None) -> ClassNames | None:
    """Return the user's names, else those that come with the file, else None."""
    if given is not None:
        return ClassNames(_split(given), "--classes")
    for key in KEYS:
        names = _ordered(_read(network.metadata.get(key, "")))
        if names:
            return ClassNames(names, f"the file's metadata ({key!r})")
    names = _ordered(network.config.get("id2label"))
    return ClassNames(names, "the config.json beside the file") if names else None


def classes_of(family: Family, number: int | None, names: ClassNames | None, labels: Iterable[int]) -> Classes:
    """Return the classes of a network.

    `number` is the number of class ids that its outputs can give, None if it gives labels as numbers: `labels` are
    then its labels for the user's images. Raises `CommandError` if the user names another number of classes.
    """
    first = 1 if family.first_class_id or (number is None and 0 not in set(labels)) else 0
    count = max(labels, default=0) + 1 - first if number is None else number - first
    fitting = None if names is None else names_for(number if number is None else count, names)
    if names is not None and fitting is None and names.is_given:
        listed = ", ".join(names.names)
        raise CommandError(f"--classes has {len(names.names)} names ({listed}); the network's outputs have {count}")
    if fitting is not None and names is not None:
        chosen, remark = fitting, Remark(PLACE, f"names from {names.origin}")
    else:
        chosen = [f"class-{number}" for number in range(first, first + max(count, 1))]
        why = "" if names is None else f"; {names.origin} has {len(names.names)} names, which do not fit"
        remark = Remark(PLACE, f"the names of the classes are not in the file{why}: they are numbered here", sure=False)
    unsure_ids = () if number is not None else (_unsure_ids(first, labels),)
    remarks = (remark, *unsure_ids, *_things(family))
    return Classes(_entries(family, chosen, first), remarks, numbered=fitting is None)


def names_for(number: int | None, names: ClassNames) -> Sequence[str] | None:
    """Return the names of `number` classes, None if there are more or fewer; a single name is the object's."""
    if number is None or len(names.names) == number:
        return names.names
    return ("background", *names.names) if (number, len(names.names)) == (2, 1) else None


def _entries(family: Family, names: Sequence[str], first: int) -> tuple[Mapping[str, Any], ...]:
    things = family.has_things
    return tuple(
        {"id": number, "name": name} | ({"thing": name.lower() != "background"} if things else {})
        for number, name in enumerate(_distinct(names), first)
    )


def _distinct(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    distinct = []
    for name in names:
        short = name.strip()[:LONGEST] or "unnamed"
        counts[short] = counts.get(short, 0) + 1
        distinct.append(short if counts[short] == 1 else f"{short[: LONGEST - 6]} ({counts[short]})")
    return distinct


def _things(family: Family) -> Iterable[Remark]:
    if family.has_things:
        text = "the file does not say which classes are things, counted one by one: `thing` is a guess"
        yield Remark(PLACE, text, sure=False)


def _unsure_ids(first: int, labels: Iterable[int]) -> Remark:
    observed = ", ".join(str(label) for label in sorted(set(labels))[:12]) or "none"
    return Remark(
        PLACE,
        f"the network returns class numbers, and the file does not list them; observed on your images: {observed}. "
        f"Ids start at {first} here; a number that is not a class makes a request fail",
        sure=False,
    )


def _split(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise CommandError(
            f"--classes is a list of names separated by commas, such as background,road,car; got {text!r}"
        )
    return names


def _read(text: str) -> Any:
    """Parse a Python or JSON literal, or names separated by commas."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return [part.strip() for part in text.split(",")] if "," in text else None


def _ordered(value: Any) -> tuple[str, ...]:
    """Return names by id; empty if ids have gaps, because positions would be wrong then."""
    if isinstance(value, dict):
        try:
            by_id = {int(key): str(name) for key, name in value.items()}
        except (ValueError, TypeError):
            return ()
        return tuple(by_id[key] for key in sorted(by_id)) if sorted(by_id) == list(range(len(by_id))) else ()
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return ()
