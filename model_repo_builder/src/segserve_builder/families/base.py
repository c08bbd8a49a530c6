"""What a family is: the meaning of a network's raw outputs, and the check that a file has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.stages.base import Stage
    from segserve_builder.steps import Pipeline
    from segserve_builder.values import Kind, Placement, Value


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a network: Triton's dtype name (`FP32`) and its shape, the batch first; None where it is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """A network's inputs and outputs, as its file declares them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class NetworkIO:
    """The tensors of a network that a family uses: its one image input, and its outputs in the family's order."""

    input: TensorSpec
    layout: Literal["NCHW", "NHWC"]
    outputs: tuple[TensorSpec, ...]


class Family(Protocol):
    """One kind of network. `version` is raised whenever the answers change: it is part of a revision's digest."""

    version: ClassVar[int]
    task: ClassVar[Literal["semantic", "instance"]]
    gives: ClassVar[Kind]
    default_postprocess: ClassVar[tuple[Stage, ...]]
    """The stages of a pipeline that lists none."""

    def network_io(self, signature: Signature, pipeline: Pipeline) -> NetworkIO:
        """Return the tensors to use, or raise `SignatureError` that says what was seen and what is allowed."""
        ...

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: Placement, pipeline: Pipeline) -> Value:
        """Turn one image's raw outputs into the first value of the postprocess stages.

        `outputs` has a batch of one, is finite, and in the order of `network_io`. Raises `SignatureError` where its
        shapes are not the family's.
        """
        ...
