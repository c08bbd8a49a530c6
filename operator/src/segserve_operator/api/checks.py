"""What has to hold between the fields of a SegmentationModel's spec."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from pydantic_core import PydanticCustomError

from segserve_builder.errors import PipelineError
from segserve_builder.families import FAMILIES
from segserve_builder.steps.postprocess import check_postprocess, check_second
from segserve_builder.steps.preprocess_rules import check_preprocess

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve_builder.spec.model_spec import ModelClass
    from segserve_builder.steps.pipeline import Pipeline

Item = TypeVar("Item")


def located(message: str, *at: str | int) -> PydanticCustomError:
    """Return an error for pydantic to collect; `at` leads from the validated value to the wrong one."""
    return PydanticCustomError("spec", "{message}", {"message": message, "at": at})


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that no `kind` is called `name`, which are, and which one was perhaps meant."""
    allowed = sorted(known)
    return f"unknown {kind} {name!r}{meant(name, allowed)}; known: {', '.join(allowed) or 'none'}"


def meant(name: str, known: Iterable[str]) -> str:
    """Return which of the known names was perhaps meant, ` (did you mean 'x'?)`; nothing where none is like it."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_family(name: str) -> str:
    """Return the name of a registered family."""
    if name not in FAMILIES:
        raise located(unknown_name("family", name, FAMILIES))
    return name


def check_distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return items that are all different."""
    for index, item in enumerate(items):
        if item in items[:index]:
            raise located(f"{item!r} is listed twice", index)
    return items


def in_order_of_id(classes: tuple[ModelClass, ...]) -> tuple[ModelClass, ...]:
    """Return the classes in order of id; ids and names must differ.

    The order in the file says nothing: on a cluster the list is a map by id.
    """
    seen: dict[int | str, int] = {}
    for index, item in enumerate(classes):
        for key in (item.id, item.name):
            if key in seen:
                field = "id" if key == item.id else "name"
                raise located(f"classes[{seen[key]}] has the {field} {key!r} too", index, field)
            seen[key] = index
    return tuple(sorted(classes, key=lambda item: item.id))


def check_class_ids(pipeline: Pipeline) -> None:
    """Check that ids count up from 0 where they are the numbers of the network's channels."""
    if not FAMILIES[pipeline.family].numbers_classes:
        return
    number = len(pipeline.classes)
    for index, item in enumerate(pipeline.classes):
        if item.id != index:
            raise located(
                f"ids must count up from 0 as the channels of family {pipeline.family!r} do: 0 to {number - 1} for "
                f"{number} classes, got {item.id}",
                "classes",
                index,
                "id",
            )


def check_stages(pipeline: Pipeline) -> None:
    """Check that the stages suit each other, the input and the family."""
    try:
        check_preprocess(pipeline.preprocess, pipeline.input)
    except PipelineError as error:
        raise located(str(error), "preprocess") from error
    try:
        check_second(pipeline)
    except PipelineError as error:
        raise located(str(error), "postprocess" if pipeline.instances is None else "instances") from error
    try:
        check_postprocess(pipeline)
    except PipelineError as error:
        raise located(str(error), "postprocess") from error
