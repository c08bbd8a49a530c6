"""What the builder reads from an ONNX file, and which files it refuses to load."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from segserve_builder.errors import ArtifactTooLargeError, EngineError, SignatureError, UnsafeArtifactError
from segserve_builder.families.base import TensorSpec
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.session import open_session

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def tiny_model(*, nodes=None, inputs=None, outputs=None, initializers=(), opsets=(("", 17),), functions=()):
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"])]
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, "h", 8])]
    outputs = outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3, "h", 8])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def branch_with(tensor: onnx.TensorProto) -> onnx.GraphProto:
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    return helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("y", 1, [1])])


def pair(zero: Any, dtype: Any, *, constant: bool = False, typed: bool = False) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.array(zero, dtype), "zero")
    if typed:
        tensor = helper.make_tensor("zero", tensor.data_type, (), [zero])
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    nodes = [helper.make_node("Constant", [], ["zero"], value=tensor)] if constant else []
    nodes += [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]
    return tiny_model(nodes=nodes, initializers=[scale] if constant else [scale, tensor])


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant"])
@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize(
    ("zero", "dtype", "found"),
    [(0, np.int8, "symmetric"), (0, np.uint8, "other"), (-3, np.int8, "other"), (128, np.uint8, "other")],
)
def test_pairs_are_symmetric_if_they_are_of_int8_and_all_their_zero_points_are_0(
    tmp_path: Path, zero: int, dtype: Any, found: str, typed: bool, constant: bool
) -> None:
    path = saved(pair(zero, dtype, constant=constant, typed=typed), tmp_path)
    assert read_signature(path).quantisation == found


@pytest.mark.parametrize(
    ("operator", "given", "found"),
    [
        ("QuantizeLinear", [], "other"),  # ONNX takes it for UINT8, TensorRT for INT8
        ("QuantizeLinear", [""], "other"),
        ("QuantizeLinear", ["made"], "other"),  # it may be anything
        ("DequantizeLinear", [], "symmetric"),
        ("DequantizeLinear", [""], "symmetric"),
        ("DequantizeLinear", ["made"], "other"),
    ],
)
def test_a_zero_point_that_is_left_out_or_computed_is_as_the_operator_takes_it(
    tmp_path: Path, operator: str, given: list[str], found: str
) -> None:
    model = pair(0, np.int8)
    (node,) = (node for node in model.graph.node if node.op_type == operator)
    del node.input[2:]
    node.input.extend(given)
    if "made" in given:
        model.graph.node.insert(0, helper.make_node("Identity", ["zero"], ["made"]))
    assert read_signature(saved(model, tmp_path)).quantisation == found
    assert read_signature(saved(tiny_model(), tmp_path)).quantisation is None


def test_free_dimensions_are_none_and_fixed_ones_are_numbers(tmp_path: Path) -> None:
    signature = read_signature(saved(tiny_model(), tmp_path))

    assert signature.inputs == (TensorSpec("x", "FP32", (None, 3, None, 8)),)
    assert signature.outputs == (TensorSpec("y", "FP32", (None, 3, None, 8)),)


@pytest.mark.parametrize(
    ("element", "name"),
    [("UINT8", "UINT8"), ("DOUBLE", "FP64"), ("FLOAT16", "FP16"), ("BFLOAT16", "BF16"), ("STRING", "BYTES")],
)
def test_element_types_get_tritons_names(tmp_path: Path, element: str, name: str) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.DataType.Value(element), ["b"])

    assert read_signature(saved(tiny_model(inputs=[value]), tmp_path)).inputs[0].dtype == name


def test_weights_that_are_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "w")]

    signature = read_signature(saved(tiny_model(inputs=inputs, initializers=[weight]), tmp_path))

    assert [tensor.name for tensor in signature.inputs] == ["x"]


@pytest.mark.parametrize("location", ["/etc/passwd", "a/../../x", "weights.bin"])
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda tensor: tiny_model(initializers=[tensor]), id="a weight"),
        pytest.param(
            lambda tensor: tiny_model(nodes=[helper.make_node("Constant", [], ["y"], value=tensor)]),
            id="an attribute",
        ),
        pytest.param(
            lambda tensor: tiny_model(
                nodes=[
                    helper.make_node(
                        "If", ["x"], ["y"], then_branch=branch_with(tensor), else_branch=branch_with(tensor)
                    )
                ]
            ),
            id="a subgraph",
        ),
        pytest.param(
            lambda tensor: tiny_model(
                nodes=[helper.make_node("F", ["x"], ["y"], domain="local")],
                opsets=[("", 17), ("local", 1)],
                functions=[
                    helper.make_function(
                        "local",
                        "F",
                        ["x"],
                        ["y"],
                        [helper.make_node("Constant", [], ["y"], value=tensor)],
                        [helper.make_opsetid("", 17)],
                    )
                ],
            ),
            id="a function",
        ),
    ],
)
def test_external_data_is_refused_wherever_it_hides(tmp_path: Path, place, location: str) -> None:
    path = saved(place(external("w", location)), tmp_path)

    with pytest.raises(UnsafeArtifactError, match=r"'w' lies outside the file .*location"):
        read_signature(path)


def test_external_entries_are_refused_even_where_the_location_flag_is_not_set(tmp_path: Path) -> None:
    tensor = external("w", "x")
    tensor.data_location = TensorProto.DEFAULT

    with pytest.raises(UnsafeArtifactError):
        read_signature(saved(tiny_model(initializers=[tensor]), tmp_path))


def test_custom_operators_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Evil", ["x"], ["y"], domain="com.evil")]

    with pytest.raises(UnsafeArtifactError, match=r"'Evil'.*'com\.evil'.*ai\.onnx"):
        read_signature(saved(tiny_model(nodes=nodes), tmp_path))


def evil_function(overload: str = "") -> onnx.FunctionProto:
    body = [helper.make_node("Evil", ["x"], ["y"], domain="com.evil")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.evil", 1)]
    return helper.make_function("local", "F", ["x"], ["y"], body, imports, overload=overload)


@pytest.mark.parametrize("functions", [(), (evil_function(),)], ids=["imported", "in a function that nothing calls"])
def test_custom_domains_that_no_node_uses_are_allowed_as_in_onnx_runtime(tmp_path: Path, functions: Any) -> None:
    declared = [("", 17), ("local", 1), ("com.evil", 1), ("ai.onnx.training", 1), ("com.microsoft.nchwc", 1)]
    path = saved(tiny_model(opsets=declared, functions=functions), tmp_path)

    assert read_signature(path).outputs[0].name == "y"
    assert [tensor.name for tensor in open_session(path).get_outputs()] == ["y"]


def test_of_functions_with_one_name_each_is_looked_at(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    harmless = helper.make_function("local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="local")]
    both = [evil_function("more"), harmless]
    model = tiny_model(nodes=nodes, opsets=[("", 17), ("local", 1), ("com.evil", 1)], functions=both)

    with pytest.raises(UnsafeArtifactError, match="Evil"):
        read_signature(saved(model, tmp_path))


SIDES = st.sampled_from(["b", "c", None, -1, -7, 2, 3, 8])


@given(shape=st.lists(SIDES, min_size=1, max_size=5), output=st.sampled_from(["as the input", "no shape", "no type"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_shapes_are_what_onnx_runtime_says(tmp_path: Path, shape: list[Any], output: str) -> None:
    model = tiny_model(
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, shape if output == "as the input" else None)],
    )
    if output == "no type":
        model.graph.output[0].ClearField("type")
    path = saved(model, tmp_path)
    session = open_session(path)

    signature = read_signature(path)

    for ours, theirs in ((signature.inputs, session.get_inputs()), (signature.outputs, session.get_outputs())):
        free = [tuple(side if isinstance(side, int) else None for side in tensor.shape) for tensor in theirs]
        assert [tensor.shape for tensor in ours] == free


@pytest.mark.parametrize(
    ("before", "axis"),
    [
        pytest.param([], 1, id="at once"),
        pytest.param([helper.make_node("Sub", ["x", "one"], ["i"])], 1, id="after arithmetic"),
        pytest.param([helper.make_node("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2])], 3, id="after a transpose"),
        pytest.param(
            [
                helper.make_node("QuantizeLinear", ["x", "one"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "one"], ["i"]),
            ],
            1,
            id="quantised",
        ),
    ],
)
@pytest.mark.parametrize(("weights", "group"), [((4, 3, 3, 3), 1), ((4, 1, 3, 3), 1), ((3, 1, 3, 3), 3)])
def test_channels_that_a_file_leaves_free_are_the_first_convolutions(
    tmp_path: Path, before: list[Any], axis: int, weights: tuple[int, ...], group: int
) -> None:
    image = before[-1].output[0] if before else "x"
    model = tiny_model(
        nodes=[*before, helper.make_node("Conv", [image, "w"], ["y"], group=group)],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "c", "h", "w"])],
        initializers=[
            numpy_helper.from_array(np.zeros(weights, np.float32), "w"),
            numpy_helper.from_array(np.array(1, np.float32), "one"),
        ],
    )
    free: list[int | None] = [None] * 4
    free[axis] = weights[1] * group

    assert read_signature(saved(model, tmp_path)).inputs[0].shape == tuple(free)


TENSORS = st.lists(st.sampled_from(["x", "y", "a", "b", "w", ""]), max_size=4)
NODES = st.builds(
    lambda kind, inputs, outputs, perm, group: helper.make_node(
        kind, inputs, outputs, **({"perm": perm} if kind == "Transpose" else {"group": group} if kind == "Conv" else {})
    ),
    st.sampled_from(["Conv", "QLinearConv", "Transpose", "Identity", "Cast", "Sub", "DequantizeLinear", "Softmax"]),
    TENSORS,
    TENSORS,
    st.lists(st.integers(-2, 9), min_size=1, max_size=5),
    st.integers(-1, 3),
)


@given(nodes=st.lists(NODES, min_size=1, max_size=5), has_shape=st.booleans())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_graphs_of_any_form_are_read_or_refused(tmp_path: Path, nodes: list[Any], has_shape: bool) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 3, 1, 1), np.float32), "w")
    model = tiny_model(nodes=nodes, inputs=[helper.make_tensor_value_info("x", 1, [None] * 4)], initializers=[weight])
    if not has_shape:
        model.graph.output[0].ClearField("type")

    with suppress(SignatureError):
        assert read_signature(saved(model, tmp_path)).inputs[0].shape.count(None) >= 3


@pytest.mark.parametrize(("ir", "opset", "what"), [(99, 17, "IR version"), (8, 99, "opset")])
def test_a_file_that_is_newer_than_onnx_runtime_is_refused_in_one_sentence(
    tmp_path: Path, ir: int, opset: int, what: str
) -> None:
    model = tiny_model(opsets=[("", opset)])
    model.ir_version = ir

    with pytest.raises(EngineError, match=f"has the {what} 99; ONNX Runtime .* runs up to") as refused:
        open_session(saved(model, tmp_path))

    assert ".cc" not in str(refused.value)


def test_custom_operators_inside_a_function_are_refused(tmp_path: Path) -> None:
    body = [helper.make_node("Evil", ["x"], ["y"], domain="local")]
    function = helper.make_function("local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="local")]
    model = tiny_model(nodes=nodes, opsets=[("", 17), ("local", 1)], functions=[function])

    with pytest.raises(UnsafeArtifactError, match="Evil"):
        read_signature(saved(model, tmp_path))


def test_functions_of_the_model_itself_are_allowed(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    function = helper.make_function("local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="local")]
    model = tiny_model(nodes=nodes, opsets=[("", 17), ("local", 1)], functions=[function])

    assert read_signature(saved(model, tmp_path)).outputs[0].name == "y"


@pytest.mark.parametrize(
    ("inputs", "seen"),
    [
        pytest.param(
            [helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["b"])],
            "sequence_type",
            id="sequence",
        ),
        pytest.param([helper.make_tensor_value_info("x", TensorProto.FLOAT, None)], "no shape", id="no rank"),
        pytest.param([helper.make_tensor_value_info("x", TensorProto.FLOAT, [0, 3])], "dimension of 0", id="zero"),
        pytest.param([helper.make_tensor_value_info("x", TensorProto.COMPLEX64, ["b"])], "COMPLEX64", id="dtype"),
        pytest.param([helper.make_tensor_value_info("x", 1, ["b"])] * 2, "named twice", id="twice"),
    ],
)
def test_tensors_that_triton_cannot_carry_are_refused(tmp_path: Path, inputs, seen: str) -> None:
    with pytest.raises(SignatureError, match=seen):
        read_signature(saved(tiny_model(inputs=inputs), tmp_path))


@given(content=st.binary(max_size=200))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises((SignatureError, UnsafeArtifactError)):
        read_signature(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    content = tiny_model().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(SignatureError, match=r"model\.onnx"):
        read_signature(path)


def test_a_graph_of_more_nodes_than_a_network_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_builder.steps.onnx_signature.MAX_NODES", 3)
    nodes = [helper.make_node("Relu", ["x"], [f"y{number}"]) for number in range(3)]
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch_with(numpy_helper.from_array(np.zeros(1))))

    with pytest.raises(UnsafeArtifactError, match="5 nodes; at most 3"):
        read_signature(saved(tiny_model(nodes=[*nodes, inner]), tmp_path))


@pytest.mark.parametrize("dims", [(2**20, 2**20), (-1, 4)], ids=["terabytes", "negative"])
def test_weights_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path, dims: tuple[int, int]) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234")

    with pytest.raises(UnsafeArtifactError, match="'w' is shaped"):
        read_signature(saved(tiny_model(initializers=[tensor]), tmp_path))


def test_a_file_larger_than_protobuf_can_hold_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)

    with pytest.raises(ArtifactTooLargeError, match="2147483648 bytes"):
        read_signature(path)


@pytest.mark.parametrize("as_node", [False, True], ids=["a weight", "a node"])
def test_a_node_that_fills_gigabytes_is_refused(tmp_path: Path, as_node: bool) -> None:
    shape = numpy_helper.from_array(np.array([2**15, 2**15], np.int64), "s")
    fill = helper.make_node("ConstantOfShape", ["s"], ["y"], name="fill")
    constant = helper.make_node("Constant", [], ["s"], value=shape)
    model = tiny_model(nodes=[constant, fill]) if as_node else tiny_model(nodes=[fill], initializers=[shape])

    with pytest.raises(UnsafeArtifactError, match=r"'fill' fills a tensor of shape \[32768, 32768\]"):
        read_signature(saved(model, tmp_path))


def test_messages_nested_deeper_than_protobuf_takes_are_no_model(tmp_path: Path) -> None:
    content = b""
    for _ in range(150):  # a graph in an attribute of a node of a graph, and so on
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size = len(content)
            content = tag + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content
    size = len(content)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content)

    with pytest.raises(SignatureError, match="nested deeper than 100"):
        read_signature(path)
