"""Reads the signature of an ONNX file, and refuses files that reference other files or custom code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import ArtifactTooLargeError, SignatureError, UnsafeArtifactError
from segserve_builder.families.base import NetworkSignature, TensorSpec
from segserve_builder.steps.onnx_wire import check_expansion

MAX_BYTES: Final = 2**31 - 1
"""Limit of a protobuf message; larger networks keep weights in other files, which are refused."""

MAX_NODES: Final = 100_000
"""About twenty times the largest known segmentation network; a graph of millions would load for hours."""

MAX_CONSTANT_ELEMENTS: Final = 2**26
"""Elements that a node may make of a constant shape: a few bytes of the file would take gigabytes at each run."""

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})

MAX_RANK: Final = 64

MOVING: Final = frozenset(
    {"Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Resize", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
"""Operators that leave values what they are, or between what they are."""
LONGEST_CHAIN: Final = 24

TRITON_DTYPES: Final[Mapping[str, str]] = {
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "DOUBLE": "FP64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
    "STRING": "BYTES",
}
"""Triton's name of each ONNX element type that it can carry."""


def read_signature(path: Path) -> NetworkSignature:
    """Return the inputs and outputs of the ONNX file at `path`, without its weights-as-inputs.

    Raises `SignatureError` if it is not an ONNX model or declares tensors that Triton cannot carry, and
    `UnsafeArtifactError` if it references external data or operators outside the ONNX standard, or has more nodes or
    larger weights than a network plausibly has.
    """
    model = _parse(path)
    _refuse_unsafe(model)
    _refuse_false_sizes(model)
    _refuse_large_constants(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = tuple(_tensor("input", value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(_tensor("output", value) for value in model.graph.output)
    _refuse_ambiguous(inputs, outputs)
    return NetworkSignature(inputs, outputs, {tensor.name: name for tensor in outputs for name in _last(model, tensor)})


def external_files(path: Path) -> frozenset[str]:
    """Return the places of weights outside the ONNX file at `path`, as it names them; raises as `read_signature`."""
    import onnx

    tensors = (each for each in _messages(_parse(path)) if isinstance(each, onnx.TensorProto))
    return frozenset(entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location")


def _last(model: Any, output: TensorSpec) -> Iterator[str]:
    """Yield the type of the last operator that does more to an output than move or resize its values."""
    makers = {name: node for node in model.graph.node for name in node.output}
    name = output.name
    for _ in range(LONGEST_CHAIN):
        if name not in makers:
            return
        node = makers[name]
        if node.op_type not in MOVING:
            yield node.op_type
            return
        name = node.input[0]


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if (size := path.stat().st_size) > MAX_BYTES:
        raise ArtifactTooLargeError(f"{path.name} has {size} bytes; an ONNX file has at most {MAX_BYTES}")
    check_expansion(path)
    try:
        # Nothing but the file that the sha256 pins is read.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise SignatureError(f"{path.name} ({path.stat().st_size} bytes) is not an ONNX model: {error}") from None
    if not model.ir_version or not model.opset_import or not model.graph.node:
        observed = f"IR version {model.ir_version}, {len(model.opset_import)} opsets, {len(model.graph.node)} nodes"
        raise SignatureError(f"{path.name} is not an ONNX model: {observed}; each must be at least 1")
    return model


def _messages(message: Any) -> Iterator[Any]:
    """Yield `message` and every message within: subgraphs, functions and attributes included."""
    yield message
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for child in value if field.is_repeated else (value,):
            yield from _messages(child)


def _refuse_unsafe(model: Any) -> None:
    import onnx

    functions = {(function.domain, function.name) for function in model.functions}
    # The domain of a function needs no code: its nodes are in the file, and are checked below.
    _refuse_domains({opset.domain for opset in model.opset_import} - {domain for domain, _ in functions})
    nodes = 0
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto):
            _refuse_external(message)
        elif isinstance(message, onnx.NodeProto):
            nodes += 1
            if (message.domain, message.op_type) not in functions:
                _refuse_domains({message.domain}, f" (operator {message.op_type!r})")
    if nodes > MAX_NODES:
        raise UnsafeArtifactError(f"the graph has {nodes} nodes; at most {MAX_NODES} are allowed")


def _refuse_external(tensor: Any) -> None:
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        observed = f"tensor {tensor.name!r} lies outside the file ({entries!r})"
        raise UnsafeArtifactError(
            f"{observed}; all weights must be inside the one file that the sha256 pins: "
            "`segserve init` joins them; or export it again with external_data=False (torch)"
        )


def _refuse_false_sizes(model: Any) -> None:
    """Refuse weights that claim to be larger than the file: loaders allocate that memory first."""
    for tensor in model.graph.initializer:
        elements = prod(tensor.dims)
        if min(tensor.dims, default=0) < 0 or elements > MAX_BYTES:
            raise UnsafeArtifactError(
                f"tensor {tensor.name!r} is shaped {list(tensor.dims)}, more than a file can hold"
            )


def _refuse_large_constants(model: Any) -> None:
    """Refuse nodes that fill a tensor of a huge shape; one that is computed is held by the step's memory limit."""
    import onnx
    from onnx import numpy_helper

    shapes: dict[str, Any] = {}
    fills = []
    for message in _messages(model):
        if isinstance(message, onnx.GraphProto):
            shapes |= {tensor.name: tensor for tensor in message.initializer}
        elif isinstance(message, onnx.NodeProto) and message.op_type == "Constant":
            shapes |= {name: each.t for each in message.attribute if each.name == "value" for name in message.output}
        elif isinstance(message, onnx.NodeProto) and message.op_type == "ConstantOfShape":
            fills.append(message)
    for node in fills:
        tensor = shapes.get(node.input[0] if node.input else "")
        if tensor is None or prod(tensor.dims) > MAX_RANK:
            continue
        dims = [int(side) for side in numpy_helper.to_array(tensor).reshape(-1)]
        if min(dims, default=0) >= 0 and prod(dims) > MAX_CONSTANT_ELEMENTS:
            raise UnsafeArtifactError(
                f"node {node.name!r} fills a tensor of shape {dims}; at most {MAX_CONSTANT_ELEMENTS} elements"
                " are allowed"
            )


def _refuse_domains(domains: set[str], where: str = "") -> None:
    custom = sorted(domains - STANDARD_DOMAINS)
    if custom:
        allowed = ", ".join(sorted(domain for domain in STANDARD_DOMAINS if domain))
        raise UnsafeArtifactError(f"operators of the domains {custom!r}{where} need custom code; allowed: {allowed}")


def _tensor(kind: str, value: Any) -> TensorSpec:
    import onnx

    if value.type.WhichOneof("value") != "tensor_type":
        observed = value.type.WhichOneof("value")
        raise SignatureError(f"{kind} {value.name!r} is of type {observed!r}; only dense tensors are allowed")
    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if element not in TRITON_DTYPES:
        raise SignatureError(f"{kind} {value.name!r} is of {element}; allowed: {', '.join(sorted(TRITON_DTYPES))}")
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise SignatureError(f"{kind} {value.name!r} declares no shape; at least a batch dimension is needed")
    shape = tuple(_size(kind, value.name, dimension) for dimension in tensor.shape.dim)
    return TensorSpec(value.name, TRITON_DTYPES[element], shape)


def _size(kind: str, name: str, dimension: Any) -> int | None:
    if not dimension.HasField("dim_value"):
        return None
    if dimension.dim_value < 1:
        raise SignatureError(f"{kind} {name!r} has a dimension of {dimension.dim_value}; sizes are at least 1")
    return int(dimension.dim_value)


def _refuse_ambiguous(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        counts = Counter(tensor.name for tensor in tensors)
        bad = sorted(name for name, count in counts.items() if count > 1 or not name)
        if bad:
            raise SignatureError(f"the {kind} {bad!r} are named twice or not at all; each needs a name of its own")
