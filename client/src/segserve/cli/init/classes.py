"""The classes of a network: named by what comes with the file, or numbered."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve.cli.errors import CommandError
from segserve.cli.init.remarks import Remark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from segserve.cli.init.network import NetworkFile

KEYS: Final = ("names", "class_names", "classes", "labels", "id2label")
PLACE: Final = ("spec", "classes")
LONGEST: Final = 100
PANOPTIC: Final = frozenset({"mask2former", "maskformer", "detr-panoptic"})


@dataclass(frozen=True)
class Names:
    """Names in the order of their ids, and where they are from."""

    names: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Classes:
    """The resource's classes, and what is to be said of them."""

    entries: tuple[Mapping[str, Any], ...]
    remarks: tuple[Remark, ...]


def names_of(network: NetworkFile, given: str | None) -> Names | None:
    """Return the names that the user gives, else those that come with the file, else None."""
    if given is not None:
        return Names(_split(given), "--classes")
    for key in KEYS:
        found = _ordered(_read(network.metadata.get(key, "")))
        if found:
            return Names(found, f"the file's metadata ({key!r})")
    found = _ordered(network.config.get("id2label"))
    return Names(found, "the config.json beside the file") if found else None


def classes_of(family: str, number: int | None, names: Names | None, labels: Iterable[int]) -> Classes:
    """Return the classes of a network.

    `number` is what its outputs imply, None where it gives labels as numbers: `labels` are those that were seen then.
    Raises `CommandError` where the user names another number of classes.
    """
    first = 1 if family == "ssd" or (number is None and 0 not in set(labels)) else 0
    many = max(labels, default=0) + 1 - first if number is None else number - first
    told = None if names is None else _fitting(names, number if number is None else many)
    if told is not None:
        entries = _entries(family, told, first)
        said = f"names from {names.origin}" if names is not None else ""
        unsure = () if number is not None else (_ids_unsure(first, labels),)
        return Classes(entries, (Remark(PLACE, said), *unsure, *_things(family)))
    numbered = [f"class-{number}" for number in range(first, first + max(many, 1))]
    seen = "" if names is None else f"; {names.origin} has {len(names.names)} names, which do not fit"
    unknown = Remark(PLACE, f"the names of the classes are not in the file{seen}: they are numbered here", sure=False)
    if number is None:
        return Classes(_entries(family, numbered, first), (unknown, _ids_unsure(first, labels), *_things(family)))
    return Classes(_entries(family, numbered, first), (unknown, *_things(family)))


def _fitting(names: Names, number: int | None) -> Sequence[str] | None:
    if number is None or len(names.names) == number:
        return names.names
    if number == 2 and len(names.names) == 1:
        return ("background", *names.names)
    if names.origin == "--classes":
        given = ", ".join(names.names)
        raise CommandError(f"--classes names {len(names.names)} ({given}); the network's outputs have {number}")
    return None


def _entries(family: str, names: Sequence[str], first: int) -> tuple[Mapping[str, Any], ...]:
    things = family in PANOPTIC
    return tuple(
        {"id": number, "name": name} | ({"thing": name.lower() != "background"} if things else {})
        for number, name in enumerate(_distinct(names), first)
    )


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        short = name.strip()[:LONGEST] or "unnamed"
        seen[short] = seen.get(short, 0) + 1
        found.append(short if seen[short] == 1 else f"{short[: LONGEST - 6]} ({seen[short]})")
    return found


def _things(family: str) -> Iterable[Remark]:
    if family in PANOPTIC:
        text = "which classes are things (counted one by one) and which are not is not in the file: `thing` is a guess"
        yield Remark(PLACE, text, sure=False)


def _ids_unsure(first: int, labels: Iterable[int]) -> Remark:
    seen = ", ".join(str(label) for label in sorted(set(labels))[:12]) or "none"
    return Remark(
        PLACE,
        f"the network gives classes as numbers, and only training knows all of them; seen on your images: {seen}. "
        f"Ids begin at {first} here; a number that is no class makes an answer fail",
        sure=False,
    )


def _split(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise CommandError(f"--classes names the classes with commas between, as background,road,car; got {text!r}")
    return names


def _read(text: str) -> Any:
    """Read a value as Python or JSON writes it, or names with commas between."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return [part.strip() for part in text.split(",")] if "," in text else None


def _ordered(found: Any) -> tuple[str, ...]:
    """Return names by id; nothing where ids have gaps, for then positions would be wrong."""
    if isinstance(found, dict):
        try:
            by_id = {int(key): str(value) for key, value in found.items()}
        except (ValueError, TypeError):
            return ()
        return tuple(by_id[key] for key in sorted(by_id)) if sorted(by_id) == list(range(len(by_id))) else ()
    if isinstance(found, list | tuple) and all(isinstance(name, str) for name in found):
        return tuple(found)
    return ()
