"""Checks that preprocess stages fit each other and the network, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, Literal

from segserve_builder.errors import PipelineError
from segserve_builder.families.base import CHANNELS, NetworkIO, TensorSpec
from segserve_builder.spec.model_spec import Input
from segserve_builder.stages import PREPROCESS
from segserve_builder.stages.base import Stage
from segserve_builder.stages.normalise import Normalise
from segserve_builder.stages.resize import Resize
from segserve_builder.steps.pipeline import PipelineStep

Layout = Literal["NCHW", "NHWC"]

_LARGEST: Final = {"UINT8": 255, "UINT16": 65535}


def check_preprocess(steps: Sequence[PipelineStep], spec: Input) -> None:
    """Raise `PipelineError` unless stages come in the registry's order, each once, and suit the input."""
    order = list(PREPROCESS)
    names = [step.name for step in steps]
    places = [order.index(name) for name in names]
    if any(later <= earlier for earlier, later in pairwise(places)):
        raise PipelineError(
            f"preprocess stages run in the order {', '.join(order)}, each at most once; got {', '.join(names)}"
        )
    for step in steps:
        _check_options(step.stage, spec)
    unrounded = any(isinstance(step.stage, Resize) and step.stage.rounding == "none" for step in steps)
    if unrounded and (spec.dtype != "UINT8" or "normalise" not in names):
        raise PipelineError(
            f"resize with rounding none needs input.dtype UINT8 and the stage normalise; got {spec.dtype} and "
            f"{', '.join(names)}"
        )


def check_network_input(steps: Sequence[PipelineStep], spec: Input, network: TensorSpec, layout: Layout) -> None:
    """Raise `PipelineError` if no image can give the network's input: dtype, channels or size differ.

    float32 from `normalise` also suits an FP16 network.
    """
    stages = [step.stage for step in steps]
    made = "FP32" if any(isinstance(stage, Normalise) for stage in stages) else spec.dtype
    if network.dtype != made and (made, network.dtype) != ("FP32", "FP16"):
        raise PipelineError(
            f"network input {network.name!r} is {network.dtype}; the preprocess stages give {made} "
            f"(input.dtype {spec.dtype}; `normalise` gives FP32)"
        )
    if len(network.shape) != 4:
        raise PipelineError(
            f"network input {network.name!r} has shape {network.shape}; allowed are four axes, {layout}"
        )
    height, width, channels = network_size(network, layout)
    if channels not in (None, CHANNELS[spec.colour]):
        raise PipelineError(
            f"network input {network.name!r} has {channels} channels; "
            f"input.colour {spec.colour} gives {CHANNELS[spec.colour]}"
        )
    for stage in stages:
        fixed = stage.fixed_size if isinstance(stage, Resize) else None
        if fixed is not None and (height not in (None, fixed[0]) or width not in (None, fixed[1])):
            raise PipelineError(
                f"network input {network.name!r} is {height or 'any'} x {width or 'any'}; "
                f"resize gives {fixed[0]} x {fixed[1]}"
            )


def common_io(first: NetworkIO, second: NetworkIO) -> NetworkIO:
    """Return the first network's tensors, with the sizes that only the second one's input fixes.

    The inputs beside the image are the first network's, and then the second's. Raises `PipelineError` if the two cannot
    take the same image.
    """
    batch, *own = first.input.shape
    others = second.input.shape[1:]
    fits = len(own) == len(others) and all(a == b or None in (a, b) for a, b in zip(own, others, strict=True))
    if not fits or (first.input.dtype, first.layout) != (second.input.dtype, second.layout):
        observed = " and ".join(f"{io.layout} {io.input.dtype} {list(io.input.shape)}" for io in (first, second))
        raise PipelineError(f"the two networks' inputs are {observed}; they get the same one")
    sizes = (b if a is None else a for a, b in zip(own, others, strict=True))
    extra = (*first.inputs[1:], *second.inputs[1:])
    return replace(first, input=replace(first.input, shape=(batch, *sizes)), extra=extra or None)


def network_size(network: TensorSpec, layout: Layout) -> tuple[int | None, int | None, int | None]:
    """Return height, width and channels of a four-axis input; None where one is free."""
    _, *axes = network.shape
    channels, height, width = axes if layout == "NCHW" else (axes[2], axes[0], axes[1])
    return height, width, channels


def _check_options(stage: Stage, spec: Input) -> None:
    largest, channels = _LARGEST[spec.dtype], CHANNELS[spec.colour]
    if isinstance(stage, Resize) and stage.pad_value is not None and stage.pad_value > largest:
        raise PipelineError(f"resize padValue must be within 0..{largest} for {spec.dtype}, got {stage.pad_value}")
    if isinstance(stage, Normalise):
        for option in ("mean", "std"):
            numbers = getattr(stage, option)
            if len(numbers) not in (1, channels):
                raise PipelineError(
                    f"normalise {option} takes 1 or {channels} numbers for {spec.colour}, got {len(numbers)}"
                )
