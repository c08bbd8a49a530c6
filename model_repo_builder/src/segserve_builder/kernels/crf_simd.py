"""Steps on 8 labels at once that LLVM does not make of loops: a pixel and its lattice vertices, sums over lanes.

They use generic LLVM vectors (no x86 names), so that ARM gets NEON code from the same source.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES: Final = 8
I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)
VECTOR: Final = ir.VectorType(ir.FloatType(), LANES)
CONTRACT: Final = ("contract",)


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _lanes(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.bitcast(_element(context, builder, array_type, array, index), VECTOR.as_pointer())


def _everywhere(builder: Any, scalar: Any) -> Any:
    single = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, LANES), None))


def _vertex(context: Any, builder: Any, ids_type: Any, ids: Any, weights_type: Any, weights: Any, at: Any) -> Any:
    """Return the offset of a vertex in its lattice, and its weight in all lanes."""
    vertex = builder.load(_element(context, builder, ids_type, ids, at))
    weight = builder.load(_element(context, builder, weights_type, weights, at))
    return builder.mul(builder.zext(vertex, I64), I64(LANES)), _everywhere(builder, weight)


def _splat(vertices: int) -> Any:
    def splat(typing_context: Any, ids: Any, weights: Any, p: Any, lattice: Any, values: Any, i: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            value = builder.load(_lanes(context, builder, kinds[4], arguments[4], arguments[5]), align=4)
            for r in range(vertices):
                at, weight = _vertex(
                    context, builder, kinds[0], arguments[0], kinds[1], arguments[1], builder.add(arguments[2], I64(r))
                )
                pointer = _lanes(context, builder, kinds[3], arguments[3], at)
                product = builder.fmul(weight, value, flags=CONTRACT)
                builder.store(builder.fadd(builder.load(pointer, align=4), product, flags=CONTRACT), pointer, align=4)
            return context.get_dummy_value()

        return types.void(ids, weights, types.intp, lattice, values, types.intp), generate

    return intrinsic(splat)


def _slice(vertices: int) -> Any:
    def cut(typing_context: Any, ids: Any, weights: Any, p: Any, lattice: Any, values: Any, i: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds, parts = signature.args, []
            for r in range(vertices):
                at, weight = _vertex(
                    context, builder, kinds[0], arguments[0], kinds[1], arguments[1], builder.add(arguments[2], I64(r))
                )
                pointer = _lanes(context, builder, kinds[3], arguments[3], at)
                parts.append(builder.fmul(weight, builder.load(pointer, align=4), flags=CONTRACT))
            pointer = _lanes(context, builder, kinds[4], arguments[4], arguments[5])
            parts.append(builder.load(pointer, align=4))
            while len(parts) > 1:  # a tree, so that additions do not wait for each other
                pairs = zip(parts[::2], parts[1::2], strict=False)
                odd = parts[len(parts) // 2 * 2 :]
                parts = [builder.fadd(a, b, flags=CONTRACT) for a, b in pairs] + odd
            builder.store(parts[0], pointer, align=4)
            return context.get_dummy_value()

        return types.void(ids, weights, types.intp, lattice, values, types.intp), generate

    return intrinsic(cut)


splat6, splat3 = _splat(6), _splat(3)
"""(ids, weights, p, lattice, values, i): add values[i:i + 8] to the vertices ids[p:p + 6 or 3]; all arrays are flat."""
slice6, slice3 = _slice(6), _slice(3)
"""The same arguments: add the weighted vertices to values[i:i + 8]."""


@intrinsic
def blur8(typing_context: Any, source: Any, i: Any, left: Any, right: Any, target: Any) -> Any:
    """Write target[i:i + 8] = source[i:i + 8] + (source[left:left + 8] + source[right:right + 8]) / 2, all flat."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        middle, before, after = (
            builder.load(_lanes(context, builder, signature.args[0], arguments[0], at), align=4)
            for at in arguments[1:4]
        )
        half = builder.fmul(builder.fadd(before, after), ir.Constant(VECTOR, [0.5] * LANES), flags=CONTRACT)
        pointer = _lanes(context, builder, signature.args[4], arguments[4], arguments[1])
        builder.store(builder.fadd(middle, half, flags=CONTRACT), pointer, align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.intp, target), generate


def _reduced(combine: Any) -> Any:
    def reduce8(typing_context: Any, values: Any, i: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(_lanes(context, builder, signature.args[0], *arguments), align=4)
            lanes = LANES
            while lanes > 1:
                lanes //= 2
                low = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
                high = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes, 2 * lanes)))
                value = combine(
                    builder, builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high)
                )
            return builder.extract_element(value, I32(0))

        return types.float32(values, types.intp), generate

    return intrinsic(reduce8)


def _changed(change: Any) -> Any:
    def change8(typing_context: Any, values: Any, i: Any, number: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _lanes(context, builder, signature.args[0], arguments[0], arguments[1])
            new = change(builder, builder.load(pointer, align=4), _everywhere(builder, arguments[2]))
            builder.store(new, pointer, align=4)
            return context.get_dummy_value()

        return types.void(values, types.intp, types.float32), generate

    return intrinsic(change8)


sum8 = _reduced(lambda builder, a, b: builder.fadd(a, b))
max8 = _reduced(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
"""(values, i): the sum, the largest, of values[i:i + 8]."""
add8 = _changed(lambda builder, a, b: builder.fadd(a, b))
scale8 = _changed(lambda builder, a, b: builder.fmul(a, b))
"""(values, i, number): add the number to values[i:i + 8], or multiply them with it."""
