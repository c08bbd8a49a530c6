"""SIMD primitives that numba lacks: comparisons to bit masks, and the index of the lowest set bit.

They use generic LLVM vectors (no x86 names), so that ARM gets NEON code from the same source.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)


def _load(context: Any, builder: Any, array_type: Any, array: Any, index: Any, lanes: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), lanes)
    pointer = builder.bitcast(builder.gep(data, [index]), vector.as_pointer())
    return builder.load(pointer, align=1)


def _splat(builder: Any, vector: Any, scalar: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, vector.count), None))


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Return the index of the lowest set bit of a non-zero int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def differ64(typing_context: Any, array: Any, i: Any, j: Any) -> Any:
    """Set bit k where array[i + k] != array[j + k], for 64 elements of a flat integer array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left = _load(context, builder, signature.args[0], arguments[0], arguments[1], 64)
        right = _load(context, builder, signature.args[0], arguments[0], arguments[2], 64)
        return builder.bitcast(builder.icmp_unsigned("!=", left, right), I64)

    return types.int64(array, types.intp, types.intp), generate


@intrinsic
def blend_above32(
    typing_context: Any, array: Any, i: Any, j: Any, m: Any, n: Any, threshold: Any, out: Any, k: Any
) -> Any:
    """Write out[k:k+32] = m * array[i:i+32] + n * array[j:j+32]; set bit b where out[k + b] > threshold (float32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left = _load(context, builder, signature.args[0], arguments[0], arguments[1], 32)
        right = _load(context, builder, signature.args[0], arguments[0], arguments[2], 32)
        vector = left.type
        near, far, limit = (_splat(builder, vector, scalar) for scalar in arguments[3:6])
        value = builder.fadd(builder.fmul(near, left), builder.fmul(far, right))
        data = context.make_array(signature.args[6])(context, builder, arguments[6]).data
        builder.store(value, builder.bitcast(builder.gep(data, [arguments[7]]), vector.as_pointer()), align=4)
        return builder.zext(builder.bitcast(builder.fcmp_ordered(">", value, limit), I32), I64)

    number, index = types.float32, types.intp
    return types.int64(array, index, index, number, number, number, out, index), generate


@intrinsic
def overlap16(
    typing_context: Any, blocks: Any, i: Any, x0: Any, y0: Any, x1: Any, y1: Any, area: Any, threshold: Any
) -> Any:
    """Set bit k where intersection > threshold * union with box k of the block at blocks[i:i + 80].

    A block is 16 boxes as five rows of 16: x0, y0, x1, y1, area (flat float32).
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def row(number: int) -> Any:
            at = builder.add(arguments[1], I64(16 * number))
            return _load(context, builder, signature.args[0], arguments[0], at, 16)

        def pick(operator: str, a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(operator, a, b), a, b)

        bx0, by0, bx1, by1, block_area = (row(number) for number in range(5))
        vector = bx0.type
        left, top, right, bottom, own_area, limit = (_splat(builder, vector, scalar) for scalar in arguments[2:])
        zero = ir.Constant(vector, None)
        width = pick(">", builder.fsub(pick("<", right, bx1), pick(">", left, bx0)), zero)
        height = pick(">", builder.fsub(pick("<", bottom, by1), pick(">", top, by0)), zero)
        intersection = builder.fmul(width, height)
        union = builder.fsub(builder.fadd(own_area, block_area), intersection)
        hit = builder.fcmp_ordered(">", intersection, builder.fmul(limit, union))
        return builder.zext(builder.bitcast(hit, ir.IntType(16)), I64)

    number = types.float32
    return types.int64(blocks, types.intp, number, number, number, number, number, number), generate


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of float32, rounded once where the processor has such an instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = ir.FloatType()
        kind = ir.FunctionType(element, [element] * 3)
        function = builder.module.declare_intrinsic("llvm.fmuladd", [element], kind)
        return builder.call(function, arguments)

    number = types.float32
    return number(number, number, number), generate


@intrinsic
def clear64(typing_context: Any, array: Any, i: Any, bits: Any) -> Any:
    """Set array[i + k] of a flat integer array to 0 where bit k is set, for 64 elements."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), 64)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer())
        chosen = builder.bitcast(arguments[2], ir.VectorType(ir.IntType(1), 64))
        kept = builder.select(chosen, ir.Constant(vector, None), builder.load(pointer, align=1))
        builder.store(kept, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate
