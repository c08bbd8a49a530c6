"""What an ONNX file says of itself, and of its folder: tensors, operators, metadata, the arithmetic it begins with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from segserve.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkSignature, TensorSpec

PASSING: Final = frozenset({"Cast", "Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Pad", "Slice"})
"""Operators that leave the values of pixels as they are."""
ASIDE: Final = frozenset({"Shape", "Size"})
LONGEST_CHAIN: Final = 24


@dataclass(frozen=True)
class Arithmetic:
    """What a graph does to pixels first: `pixel * factor + offset`, a number for every channel or one for all."""

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def does_nothing(self) -> bool:
        """Whether pixels go into the network as they come."""
        return set(self.factor) <= {1.0} and set(self.offset) <= {0.0}

    @property
    def of_bytes(self) -> bool:
        """Whether it is meant for pixels of 0 to 255, and not of 0 to 1: networks want about -3 to 3."""
        return max(map(abs, self.factor)) < 0.2 or max(map(abs, self.offset)) > 10


@dataclass(frozen=True)
class NetworkFile:
    """One ONNX file. `shapes` are those of the outputs for one image, where it was run; declared sizes may be free."""

    path: Path
    signature: NetworkSignature
    operators: frozenset[str]
    metadata: Mapping[str, str]
    arithmetic: Arithmetic | None
    """None where the graph begins with something else than constants can say."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config.json of transformers beside the file."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def image(self) -> TensorSpec:
        """The input."""
        return self.signature.inputs[0]

    def shape(self, tensor: TensorSpec) -> tuple[int | None, ...]:
        """Return the shape of an output, with what running it has shown."""
        seen = self.shapes.get(tensor.name, ())
        if len(seen) != len(tensor.shape):
            return tensor.shape
        return tuple(old if old is not None else new for old, new in zip(tensor.shape, seen, strict=True))


def read_network(path: Path) -> NetworkFile:
    """Return what the file at `path` says.

    Raises `CommandError` where there is no such file, and what `read_signature` raises for one that cannot be served.
    """
    import onnx

    from segserve_builder.families.signature import described_all
    from segserve_builder.steps.onnx_signature import read_signature

    try:
        signature = read_signature(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    if len(signature.inputs) != 1:
        seen = described_all(signature.inputs)
        raise CommandError(
            f"{path} has {len(signature.inputs)} inputs: {seen}; one is allowed, the image. "
            "Export it anew with the others fixed inside the graph"
        )
    model = onnx.load(path, load_external_data=False)
    return NetworkFile(
        path,
        signature,
        frozenset(node.op_type for node in model.graph.node),
        {entry.key: entry.value for entry in model.metadata_props},
        _arithmetic(model.graph, signature.inputs[0].name),
        _beside(path),
    )


def _beside(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((path.parent / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "architectures" in found else {}


def _arithmetic(graph: Any, name: str) -> Arithmetic | None:
    """Follow the image through the graph for as long as all that happens to it is arithmetic with constants."""
    import numpy as np

    constants = dict(_constants(graph))
    factor, offset = np.ones(1), np.zeros(1)
    for _ in range(LONGEST_CHAIN):
        users = [node for node in graph.node if name in node.input and node.op_type not in ASIDE]
        if len(users) != 1:
            break
        (node,) = users
        if node.op_type in PASSING and node.input[0] == name:
            name = node.output[0]
            continue
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            break
        applied = _applied(node, name, constants, factor, offset)
        if applied is None:
            return None
        (factor, offset), name = applied, node.output[0]
    if not factor.all():
        return None
    return Arithmetic(tuple(map(float, factor)), tuple(map(float, offset)))


def _applied(
    node: Any, name: str, constants: Mapping[str, NDArray[Any]], factor: NDArray[Any], offset: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    first = node.input[0] == name
    number = constants.get(node.input[1 if first else 0])
    if number is None or number.size not in (1, 3) or not (first or node.op_type in ("Add", "Mul")):
        return None
    number = number.astype("float64").ravel()
    match node.op_type:
        case "Add":
            return factor, offset + number
        case "Sub":
            return factor, offset - number
        case "Mul":
            return factor * number, offset * number
        case _:
            return factor / number, offset / number


def _constants(graph: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield small tensors by name: initialisers, constants, and what only gives one of them another shape."""
    from onnx import numpy_helper

    known = {t.name: t for t in graph.initializer if sum(t.dims) <= 8}
    for name, tensor in known.items():
        yield name, numpy_helper.to_array(tensor)
    small: dict[str, NDArray[Any]] = {name: numpy_helper.to_array(tensor) for name, tensor in known.items()}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            small[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in PASSING and node.input and node.input[0] in small:
            small[node.output[0]] = small[node.input[0]]
        else:
            continue
        yield node.output[0], small[node.output[0]]
