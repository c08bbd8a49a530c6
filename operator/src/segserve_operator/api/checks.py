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
from segserve_builder.steps.postprocess import check_fusion, check_postprocess, check_second
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


def check_distinct(items: tuple[Item, ...], *at: str) -> tuple[Item, ...]:
    """Return the items, which are at the path `at`, if all are different, else raise a validation error."""
    for index, item in enumerate(items):
        if item in items[:index]:
            raise located(f"{item!r} is listed twice", *at, index)
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


def check_shared(own: Pipeline, other: Pipeline, at: tuple[str, ...]) -> None:
    """Check that the network of `other`, another model, can be the second one of `own`, which names it at `at`.

    Both get the same images and find the same classes; a network whose instances are fused gets the same tensor, and
    finds the classes that are things.
    """
    fuses = at == ("instances",)
    numbered = fuses and FAMILIES[other.family].numbers_classes
    wanted, found = (
        [item.name if numbered else f"{item.id} {item.name}" for item in classes]
        for classes in ([item for item in own.classes if item.thing or not fuses], other.classes)
    )
    if wanted and found != wanted:
        whose = "the classes of this model that are things" if fuses else "the classes of this model"
        raise located(f"{other.model} has {', '.join(found)}; allowed: {whose}, {', '.join(wanted)}", *at, "model")
    for name in ("colour", "dtype"):
        seen, expected = getattr(other.input, name), getattr(own.input, name)
        if seen != expected:
            raise located(f"{other.model} has input.{name} {seen}; that of this model is {expected}", *at, "model")
    if fuses and other.inference:
        message = f"{other.model} has inference, which runs its network more than once; name a model without it"
        raise located(message, *at, "model")
    if fuses and other.identity()["preprocess"] != own.identity()["preprocess"]:
        message = f"{other.model} has another preprocess; both networks get the same tensor, so write the same stages"
        raise located(message, *at, "model")


def check_own_stages(pipeline: Pipeline, *, fuses: bool) -> None:
    """Check what of the stages can be seen without the second network: all, unless they fuse its instances."""
    if not fuses:
        check_stages(pipeline)
        return
    _check_preprocess(pipeline)
    try:
        check_fusion(pipeline, fuses=fuses)
    except PipelineError as error:
        raise located(str(error), "instances") from error


def _check_preprocess(pipeline: Pipeline) -> None:
    try:
        check_preprocess(pipeline.preprocess, pipeline.input)
    except PipelineError as error:
        raise located(str(error), "preprocess") from error


def check_stages(pipeline: Pipeline) -> None:
    """Check that the stages fit each other, the input and the family."""
    _check_preprocess(pipeline)
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
