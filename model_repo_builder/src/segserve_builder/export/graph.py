"""ONNX files of torch networks: written to take pixels and a free batch, and checked against the network."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import ExportError
from segserve_builder.export.image_processor import ImageProcessor
from segserve_builder.families.base import Family
from segserve_builder.steps.session import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET: Final = 17
INPUT: Final = "image"
_PIXELS: Final = ("out", "segmentation", "pred", "output")
ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "logits": ("logits", *_PIXELS),
    "probabilities": ("probabilities", *_PIXELS),
}
"""Keys under which networks that return a dict keep an output."""
TOLERANCE: Final = 1e-3
"""Largest allowed difference between the file and the network, relative to the outputs' range."""


@dataclass(frozen=True)
class Preparation:
    """The preprocessing of a network: (pixel * scale - mean) / std, after what its image processor does."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    processor: ImageProcessor = field(default_factory=ImageProcessor)


@dataclass(frozen=True)
class ExportShape:
    """The input of the file: uint8 images of `channels`; with `free_size` the size is only the example's."""

    height: int
    width: int
    channels: int
    free_size: bool


def folded(module: Any, family: Family, preparation: Preparation) -> Any:
    """Return a torch network that takes uint8 (B, C, H, W) and returns the family's outputs, in order.

    Running it raises `ExportError` if the module returns others.
    """
    import torch

    class Folded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = module
            shape = (1, -1, 1, 1)
            self.register_buffer("mean", torch.tensor(preparation.mean).reshape(shape))
            self.register_buffer("std", torch.tensor(preparation.std).reshape(shape))

        def forward(self, image: Any) -> tuple[Any, ...]:
            pixels = (image.to(torch.float32) * preparation.scale - self.mean) / self.std
            return tuple(_picked(self.network(pixels), family.output_names))

    return Folded().eval()


def _picked(answer: Any, names: Sequence[str]) -> list[Any]:
    import torch

    if isinstance(answer, torch.Tensor):
        answer = (answer,)
    if isinstance(answer, dict):  # transformers' outputs are also dicts
        outputs = [next((answer[key] for key in ALIASES.get(name, (name,)) if key in answer), None) for name in names]
        if any(one is None for one in outputs):
            raise ExportError(f"the network returns {', '.join(answer)}; the family's outputs are {', '.join(names)}")
        return outputs
    if len(answer) < len(names):
        raise ExportError(f"the network returns {len(answer)} outputs; the family has {', '.join(names)}")
    return list(answer[: len(names)])


def write(network: Any, family: Family, shape: ExportShape, path: Path) -> None:
    """Write the network as ONNX; raises `ExportError` if torch cannot express it."""
    import warnings

    import torch

    axes: dict[str, dict[int, str]] = {INPUT: {0: "batch"} if family.batched else {}}
    axes |= {name: {0: "batch" if family.batched else "detections"} for name in family.output_names}
    if shape.free_size:
        axes[INPUT] |= {2: "height", 3: "width"}
        for name in family.image_sized_outputs:
            axes[name] |= {2: f"{name}_height", 3: f"{name}_width"}
    example = torch.zeros(1, shape.channels, shape.height, shape.width, dtype=torch.uint8)
    written = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing warns about constants; `largest_difference` checks what matters
            torch.onnx.export(
                network,
                (example,),
                written,
                input_names=[INPUT],
                output_names=list(family.output_names),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except ExportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise ExportError(f"torch cannot write this network as ONNX: {type(error).__name__}: {reason}") from error
    path.write_bytes(written.getbuffer())


def answers(network: Any, batches: Iterable[NDArray[Any]]) -> Iterator[list[NDArray[Any]]]:
    """Yield a folded network's outputs for each batch, uint8 (B, C, H, W) or (B, H, W, C) as its file takes them."""
    import torch

    for batch in batches:
        with torch.no_grad():
            yield [one.numpy() for one in network(torch.from_numpy(batch))]


def largest_difference(
    expected: Iterable[Sequence[NDArray[Any]]], path: Path, batches: Sequence[NDArray[Any]], *, batched: bool
) -> float:
    """Return the largest difference between the file's outputs and the expected ones, relative to the outputs' range.

    `batches` are those whose outputs are `expected`. Raises `ExportError` if shapes differ or, with `batched`, if there
    is not one answer per image.
    """
    import numpy as np

    session = open_session(path)
    worst = 0.0
    for batch, outputs in zip(batches, expected, strict=True):
        for theirs, ours in zip(outputs, session.run(None, {INPUT: batch}), strict=True):
            if theirs.shape != ours.shape:
                raise ExportError(f"the file returns shape {list(ours.shape)}, the network {list(theirs.shape)}")
            if batched and len(ours) != len(batch):
                raise ExportError(
                    f"the network returns a batch of {len(ours)} for {len(batch)} images; expected one answer per image"
                )
            if theirs.size:
                spread = max(float(np.ptp(theirs)), 1e-6)
                worst = max(worst, float(np.abs(theirs.astype(np.float64) - ours).max()) / spread)
    return worst
