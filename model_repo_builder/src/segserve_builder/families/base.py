"""What a family is: the meaning of a network's raw outputs, and the check that a file has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import ResizeTransform, Value, ValueType


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a network: Triton's dtype name (`FP32`) and its shape, the batch first; None where it is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class NetworkSignature:
    """A network's inputs and outputs, as its file declares them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class NetworkIO:
    """The tensors of a network that a family uses: its one image input, and its outputs in the family's order.

    Shapes have the batch first. Where the file's outputs have none (`batched` is False), the network runs one image at
    a time, and a batch of one is put before each.
    """

    input: TensorSpec
    layout: Literal["NCHW", "NHWC"]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True


class Family(Protocol):
    """One kind of network. `version` is raised whenever the answers change: it is part of a revision's digest."""

    version: ClassVar[int]
    numbers_classes: ClassVar[bool]
    """Whether classes are channels of an output, so that their ids count up from 0; else the network names the ids."""
    gives: ClassVar[ValueType]
    default_postprocess: ClassVar[tuple[Stage, ...]]
    """The stages of a pipeline that lists none; they decide its task."""

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the tensors to use, or raise `SignatureError` that says what was seen and what is allowed."""
        ...

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Value:
        """Turn one image's raw outputs into the first value of the postprocess stages.

        `outputs` has a batch of one, is finite, and in the order of `network_io`. Raises `SignatureError` where its
        shapes or class ids are not the family's.
        """
        ...
