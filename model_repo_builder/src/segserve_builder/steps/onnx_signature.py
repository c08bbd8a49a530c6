"""Reads the signature of an ONNX file, and refuses files that reference other files or custom code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

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
METADATA_OPERATORS: Final = frozenset({"Shape", "Size"})
CONVERTING: Final = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})
POINTWISE: Final = CONVERTING | {"Add", "BatchNormalization", "Clip", "Div", "Mul", "Pad", "Resize", "Sub"}
CONVOLUTIONS: Final[Mapping[str, int]] = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""The place of the weights among the inputs of each operator."""
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
    inputs = tuple(
        _with_channels(model, _tensor("input", value)) for value in model.graph.input if value.name not in weights
    )
    outputs = tuple(_tensor("output", value) for value in _outputs(model))
    _refuse_ambiguous(inputs, outputs)
    last = {tensor.name: name for tensor in outputs for name in _last(model, tensor)}
    return NetworkSignature(inputs, outputs, last, _quantisation(model))


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
        name = next(iter(node.input), "")


def _quantisation(model: Any) -> Literal["symmetric", "other"] | None:
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    constants = [(tensor.name, tensor) for tensor in model.graph.initializer]
    made = [node for node in model.graph.node if node.op_type == "Constant"]
    constants += [(node.output[0], each.t) for node in made for each in node.attribute if node.output]
    signed = [(name, each) for name, each in constants if each.data_type in (each.INT8, each.INT32)]
    zeros = {name for name, each in signed if not each.raw_data.strip(b"\0") and not any(each.int32_data)}
    # Without a zero point QuantizeLinear makes UINT8, of which TensorRT would take half the range.
    given = {name for node in pairs for name in node.input[2:] or [""] if name or node.op_type == "QuantizeLinear"}
    return ("symmetric" if given <= zeros else "other") if pairs else None


def _outputs(model: Any) -> Sequence[Any]:
    """Return the outputs; if one declares no type or shape, with what the graph implies, as ONNX Runtime does."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model.graph.output  # type: ignore[no-any-return]
    import onnx

    # Without large weights, of which only the shapes count, and without functions, which may call themselves.
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.CopyFrom(onnx.GraphProto(name=model.graph.name, node=model.graph.node, output=model.graph.output))
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= MAX_RANK:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True).graph.output  # type: ignore[no-any-return]
    except onnx.shape_inference.InferenceError:
        return model.graph.output  # type: ignore[no-any-return]


def _with_channels(model: Any, image: TensorSpec) -> TensorSpec:
    """Return an input with the channels that the first convolution takes, if the file leaves their number free."""
    if len(image.shape) != 4 or None not in (image.shape[1], image.shape[3]):
        return image
    name, axes = image.name, [0, 1, 2, 3]
    for _ in range(LONGEST_CHAIN):
        users = [node for node in model.graph.node if name in node.input and node.op_type not in METADATA_OPERATORS]
        if len(users) != 1 or not users[0].output:
            break
        (node,) = users
        options = {each.name: each for each in node.attribute}
        if node.op_type in CONVOLUTIONS:
            place = CONVOLUTIONS[node.op_type]
            taken = [size for name in node.input[place : place + 1] for size in _dims(model, name)[1:2]]
            shape, axis = list(image.shape), axes[1]
            if taken and taken[0] > 0 and shape[axis] is None:
                shape[axis] = taken[0] * (options["group"].i if "group" in options else 1)
            return replace(image, shape=tuple(shape))
        if node.op_type == "Transpose" and "perm" in options and sorted(options["perm"].ints) == [0, 1, 2, 3]:
            axes = [axes[axis] for axis in options["perm"].ints]
        elif node.op_type not in POINTWISE:
            break
        name = node.output[0]
    return image


def _dims(model: Any, name: str) -> Sequence[int]:
    """Return the shape of a constant tensor, also behind operators that only convert it; empty if it is none."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for _ in range(LONGEST_CHAIN):
        if name in known or name not in makers or makers[name].op_type not in CONVERTING:
            break
        name = next(iter(makers[name].input), "")
    if name in known:
        return known[name].dims  # type: ignore[no-any-return]
    values = makers[name].attribute if name in makers else ()
    return next((each.t.dims for each in values if each.name == "value"), ())


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

    functions = defaultdict(list)
    for function in model.functions:
        functions[function.domain, function.name].append(function)
    # What is declared and not used needs no code: exporters and optimisers declare domains that no node has.
    used, called = [model.graph, *model.training_info], set[tuple[str, str]]()
    for part in used:
        for node in (each for each in _messages(part) if isinstance(each, onnx.NodeProto)):
            kind = (node.domain, node.op_type)
            if kind in functions and kind not in called:
                used += functions[kind]
                called.add(kind)
            elif kind not in functions and node.domain not in STANDARD_DOMAINS:
                raise UnsafeArtifactError(
                    f"the operator {node.op_type!r} of the domain {node.domain!r} needs custom code; allowed: "
                    f"{', '.join(sorted(filter(None, STANDARD_DOMAINS)))}"
                )
    nodes = 0
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto):
            _refuse_external(message)
        nodes += isinstance(message, onnx.NodeProto)
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
        raise SignatureError(
            f"{kind} {value.name!r} declares no shape, and the graph implies none; at least a batch dimension is "
            "needed: onnx.tools.update_model_dims writes shapes"
        )
    shape = tuple(_size(kind, value.name, dimension) for dimension in tensor.shape.dim)
    return TensorSpec(value.name, TRITON_DTYPES[element], shape)


def _size(kind: str, name: str, dimension: Any) -> int | None:
    # Below 0 a size is free, as for ONNX Runtime.
    if not dimension.HasField("dim_value") or dimension.dim_value < 0:
        return None
    if dimension.dim_value == 0:
        raise SignatureError(f"{kind} {name!r} has a dimension of 0; sizes are at least 1, or free")
    return int(dimension.dim_value)


def _refuse_ambiguous(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        counts = Counter(tensor.name for tensor in tensors)
        bad = sorted(name for name, count in counts.items() if count > 1 or not name)
        if bad:
            raise SignatureError(f"the {kind} {bad!r} are named twice or not at all; each needs a name of its own")
