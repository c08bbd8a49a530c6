"""Rules between the fields of a SegmentationModel's spec."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

from pydantic_core import PydanticCustomError

from segserve_builder.errors import PipelineError, ScoreError
from segserve_builder.families import FAMILIES
from segserve_builder.spec.model_spec import ModelClass
from segserve_builder.steps.cascade import check_cascade
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import check_postprocess, check_second
from segserve_builder.steps.preprocess_rules import check_preprocess

Item = TypeVar("Item")


def located(message: str, *at: str | int) -> PydanticCustomError:
    """Return an error for pydantic to collect; `at` is the path from the validated value to the invalid one."""
    return PydanticCustomError("spec", "{message}", {"message": message, "at": at})


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name of `kind`: the known names and the closest one."""
    allowed = sorted(known)
    return f"unknown {kind} {name!r}{did_you_mean(name, allowed)}; known: {', '.join(allowed) or 'none'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_family(name: str) -> str:
    """Return the name of a registered family, or raise a validation error."""
    if name not in FAMILIES:
        raise located(unknown_name("family", name, FAMILIES))
    return name


def check_distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the items if all are different, else raise a validation error."""
    for index, item in enumerate(items):
        if item in items[:index]:
            raise located(f"{item!r} is listed twice", index)
    return items


def in_order_of_id(classes: tuple[ModelClass, ...]) -> tuple[ModelClass, ...]:
    """Return the classes in order of id; ids and names must be unique.

    The order in the file has no meaning: on a cluster the list is a map with the key id.
    """
    index_by_key: dict[int | str, int] = {}
    for index, item in enumerate(classes):
        for key in (item.id, item.name):
            if key in index_by_key:
                field = "id" if key == item.id else "name"
                raise located(f"classes[{index_by_key[key]}] has the {field} {key!r} already", index, field)
            index_by_key[key] = index
    return tuple(sorted(classes, key=lambda item: item.id))


def check_class_ids(pipeline: Pipeline) -> None:
    """Check that ids count up from 0 if the family numbers the network's channels.

    Those of a cascade's light network are checked with its stages.
    """
    if not FAMILIES[pipeline.family].numbers_classes:
        return
    number = len(pipeline.classes)
    for index, item in enumerate(pipeline.classes):
        if item.id != index:
            raise located(
                f"ids must be 0 to {number - 1} for {number} classes, like the channels of family "
                f"{pipeline.family!r}, got {item.id}",
                "classes",
                index,
                "id",
            )


def check_stages(pipeline: Pipeline) -> None:
    """Check that the stages fit each other, the input and the family."""
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
    except ScoreError as error:
        raise located(str(error), "outOfDistribution", "score") from error
    except PipelineError as error:
        raise located(str(error), "postprocess") from error
    try:
        check_cascade(pipeline)
    except PipelineError as error:
        raise located(str(error), "cascade") from error
