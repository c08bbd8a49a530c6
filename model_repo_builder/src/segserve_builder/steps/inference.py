"""Runs a network over one image: over tiles of it, over augmented views of it, or over tiles of views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from segserve_builder.errors import PipelineError, SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec, described_all
from segserve_builder.families.network_inputs import extra_inputs
from segserve_builder.families.promptable import DecoderIO, PromptableFamily
from segserve_builder.stages.base import Stage
from segserve_builder.stages.tile import TiledInference
from segserve_builder.stages.tta import Tta
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Call: TypeAlias = "Callable[[NDArray[Any]], NDArray[Any]]"
"""A run of the network over a batch."""

Layout = Literal["NCHW", "NHWC"]


def network_io(pipeline: Pipeline, signature: NetworkSignature) -> NetworkIO:
    """Return the tensors of the network's step that the family reads.

    Raises `SignatureError` if it has others or does not fit the precision, and `PipelineError` as `with_inference`.
    """
    if pipeline.runtime.precision == "int8" and signature.quantisation != "symmetric":
        raise SignatureError(
            "runtime.precision int8 needs QuantizeLinear pairs of INT8 with zero points of 0, and the file has "
            f"{signature.quantisation or 'no'} pairs: `segserve export --precision int8` makes them for engine tensorrt"
        )
    io = FAMILIES[pipeline.family].network_io(signature, pipeline)
    return with_inference(pipeline, replace(io, extra=extra_inputs(signature) or None))


def decoder_io(pipeline: Pipeline, signature: NetworkSignature, encoder: NetworkIO) -> DecoderIO:
    """Return the tensors of the prompt decoder's file for the embeddings of `encoder`.

    Raises `SignatureError` if it has others, and `PipelineError` if the family has no decoder.
    """
    family = FAMILIES[pipeline.family]
    if not isinstance(family, PromptableFamily):
        raise PipelineError(f"family {pipeline.family!r} has no prompt decoder")
    return family.decoder_io(signature, encoder)


def with_inference(pipeline: Pipeline, io: NetworkIO) -> NetworkIO:
    """Return the tensors of the network's step: the network's own, with free sizes if it runs over tiles.

    Raises `PipelineError` if the pipeline's inference steps do not fit each other, the family, or a network with a
    fixed input size.
    """
    steps = [step.stage for step in pipeline.inference]
    names = [step.name for step in pipeline.inference]
    if not steps:
        return io
    if FAMILIES[pipeline.family].gives != ValueType.LOGITS:
        gives = FAMILIES[pipeline.family].gives
        raise PipelineError(f"inference {names[0]!r} merges logits; family {pipeline.family!r} gives {gives}")
    if names not in (["tile"], ["tta"], ["tta", "tile"]):
        raise PipelineError(f"inference is tta, tile, or tta and then tile; got {', '.join(names)}")
    if not io.batched:
        raise PipelineError(f"inference {names[0]!r} needs a network whose outputs have a batch")
    if io.extra is not None:
        raise PipelineError(
            f"inference {names[0]!r} cuts or turns the image; the network also has {described_all(io.extra)}"
        )
    fixed = _size(io.input, io.layout)
    for stage in steps:
        _check_size(stage, fixed, tiled="tile" in names)
    if "tile" not in names:
        return io
    outputs = tuple(replace(tensor, shape=(*tensor.shape[:2], None, None)) for tensor in io.outputs)
    return replace(io, input=_of_any_size(io.input, io.layout), outputs=outputs)


def run(batch: NDArray[Any], layout: Layout, call: Call, steps: Sequence[Stage], max_batch_size: int) -> NDArray[Any]:
    """Return the logits, float32 (N, C, h, w), of a batch of N images, each run by itself.

    `call` runs the network over a batch of at most `max_batch_size`; `steps` are as `with_inference` allows them.
    Memory beside the result is bounded by the tiles of one row and the batch. Raises `PipelineError` if the shapes of
    the network's answers do not match.
    """
    import numpy as np

    axes = (1, 2) if layout == "NCHW" else (0, 1)
    inner, most = call, max_batch_size
    for stage in reversed(steps):
        if isinstance(stage, TiledInference):
            # Tiles fill the network's batches, so views around them run one by one.
            inner, most = partial(_over_tiles, axes=axes, call=inner, options=stage, max_batch_size=most), 1
        elif isinstance(stage, Tta):
            inner = partial(_over_views, axes=axes, call=inner, options=stage, max_batch_size=most)
    return np.concatenate([inner(image[None]) for image in batch])


def _over_tiles(
    batch: NDArray[Any], axes: tuple[int, int], call: Call, options: TiledInference, max_batch_size: int
) -> NDArray[Any]:
    from segserve_builder.steps.tiling import TilePlan, answers, merged, tiles

    image = batch[0]
    rows, columns = axes

    def read(top: int, left: int, height: int, width: int) -> NDArray[Any]:
        part: list[slice] = [slice(None)] * image.ndim
        part[rows], part[columns] = slice(top, top + height), slice(left, left + width)
        pixels: NDArray[Any] = image[tuple(part)]
        return pixels

    plan = TilePlan.of(options, image.shape[rows], image.shape[columns])
    return merged(plan, answers(tiles(plan, read, axes), call, max_batch_size))[None]


def _over_views(
    batch: NDArray[Any], axes: tuple[int, int], call: Call, options: Tta, max_batch_size: int
) -> NDArray[Any]:
    from segserve_builder.steps.views import averaged

    return averaged(batch[0], axes, call, options, max_batch_size)[None]


def _check_size(stage: Stage, fixed: tuple[int | None, int | None], *, tiled: bool) -> None:
    height, width = fixed
    observed = f"the network's input is {height or 'any'} x {width or 'any'} pixels"
    if isinstance(stage, TiledInference) and (
        stage.height != (height or stage.height) or stage.width != (width or stage.width)
    ):
        raise PipelineError(f"{observed}; tiles are {stage.height} x {stage.width}")
    if isinstance(stage, Tta) and not tiled and (height or width):
        if any(scale != 1 for scale in stage.scales):
            raise PipelineError(f"{observed}; scaled views need one of any size, or tile")
        if height != width and {90, 270} & set(stage.rotations):
            raise PipelineError(f"{observed}; rotated views need a square one, or tile")


def _size(tensor: TensorSpec, layout: Layout) -> tuple[int | None, int | None]:
    return (tensor.shape[2], tensor.shape[3]) if layout == "NCHW" else (tensor.shape[1], tensor.shape[2])


def _of_any_size(tensor: TensorSpec, layout: Layout) -> TensorSpec:
    batch, first, _, last = tensor.shape
    shape = (batch, first, None, None) if layout == "NCHW" else (batch, None, None, last)
    return replace(tensor, shape=shape)
