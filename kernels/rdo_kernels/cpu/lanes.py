"""Vectors of unsigned integers for numba: arithmetic by operators, and the permutations of AVX-512.

numba compiles scalar loops only; here a vector of LLVM becomes a type of its own, so that a loop over lanes that depend
on memory (look-ups, and moving the lanes that meet a condition together or apart) is written as it is meant to run.
LLVM takes care of the operators on any machine; what begins with "permutes" in its description needs :func:`available`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def available() -> bool:
    """Whether numba compiles for a machine with the instructions that the permutations need."""
    features = str(cpu_target.target_context.codegen().magic_tuple()[2]).split(",")
    return {"+avx512bw", "+avx512vbmi2"} <= set(features)


class Lanes(types.Type):
    """``count`` unsigned integers of ``bits`` bits; of one bit: a mask."""

    def __init__(self, bits: int, count: int) -> None:
        self.bits, self.count = bits, count
        super().__init__(name=f"Lanes({bits}, {count})")

    @property
    def vector(self) -> Any:
        """The type in LLVM."""
        return ir.VectorType(ir.IntType(self.bits), self.count)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.vector)  # type: ignore[no-untyped-call]


WORDS, HALVES = Lanes(32, 16), Lanes(16, 32)
"""What the functions here work on: 32 lanes of 16 bits, or sixteen of 32 bits."""
_BOTH = ir.VectorType(ir.IntType(16), 64)


def _intrinsic(function: Callable[..., Any]) -> Any:
    """Make a compiled function of one that is given types, and returns a signature and what builds the instructions."""
    return intrinsic(function)


def _constant(lanes: Lanes, value: int) -> Any:
    return ir.Constant(lanes.vector, [value] * lanes.count)


def _spread(builder: Any, lanes: Lanes, value: Any) -> Any:
    """An integer in every lane; its upper bits are dropped."""
    element = lanes.vector.element
    if value.type.width != element.width:
        value = (builder.trunc if value.type.width > element.width else builder.zext)(value, element)
    undefined = ir.Constant(lanes.vector, ir.Undefined)
    one = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, lanes.count), [0] * lanes.count))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an intrinsic function of LLVM."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = get_or_insert_function(builder.module, signature, name)  # type: ignore[no-untyped-call]
    return builder.call(function, arguments)


def _address(context: Any, builder: Any, array: Any, vector: Any, value: Any, index: Any) -> Any:
    """Pointer to the vector that begins at an index of a contiguous array of one axis."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _elements(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Iterator[Any]:
    """The elements of an array at each lane of an index."""
    data = context.make_array(array)(context, builder, value).data
    for lane in range(WORDS.count):
        place = builder.zext(builder.extract_element(index, _I32(lane)), _I64)
        yield builder.load(builder.gep(data, [place]))


def _register(function: Any, build: Callable[[Any, Any, Any], Any], mask: bool = False) -> None:
    """Make an operator work on two vectors, or on a vector and an integer that every lane shares."""

    @_intrinsic
    def apply(typing_context: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, y = arguments
            return build(builder, x, y if isinstance(right, Lanes) else _spread(builder, left, y))

        return (Lanes(1, left.count) if mask else left)(left, right), generate

    @overload(function)
    def typed(left, right):  # type: ignore[no-untyped-def]
        if isinstance(left, Lanes) and (right == left or isinstance(right, types.Integer)):
            return lambda left, right: apply(left, right)
        return None


_register(operator.add, lambda builder, x, y: builder.add(x, y))
_register(operator.sub, lambda builder, x, y: builder.sub(x, y))
_register(operator.mul, lambda builder, x, y: builder.mul(x, y))
_register(operator.and_, lambda builder, x, y: builder.and_(x, y))
_register(operator.or_, lambda builder, x, y: builder.or_(x, y))
_register(operator.xor, lambda builder, x, y: builder.xor(x, y))
_register(operator.lshift, lambda builder, x, y: builder.shl(x, y))
_register(operator.rshift, lambda builder, x, y: builder.lshr(x, y))
_register(operator.lt, lambda builder, x, y: builder.icmp_unsigned("<", x, y), mask=True)
_register(operator.ge, lambda builder, x, y: builder.icmp_unsigned(">=", x, y), mask=True)


@_intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """The 32 halves ``array[index : index + 32]`` of a uint16 array."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, array, HALVES.vector, *arguments), align=1)

    return HALVES(array, index), build


@_intrinsic
def store(typing_context: Any, array: Any, index: Any, halves: Any) -> Any:
    """Write the 32 halves ``array[index : index + 32]`` of a uint16 array."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, value = arguments
        builder.store(value, _address(context, builder, array, HALVES.vector, *place), align=1)
        return context.get_dummy_value()

    return types.void(array, index, halves), build


@_intrinsic
def load_split(typing_context: Any, array: Any, index: Any) -> Any:
    """The low and the high halves of ``array[index : index + 32]``, of 32 bits each."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_address(context, builder, array, _BOTH, *arguments), align=1)
        orders = (ir.Constant(ir.VectorType(_I32, 32), list(range(first, 64, 2))) for first in range(2))
        parts = [builder.shuffle_vector(value, ir.Constant(_BOTH, ir.Undefined), order) for order in orders]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(HALVES, 2)(array, index), build  # type: ignore[no-untyped-call]


@_intrinsic
def store_joined(typing_context: Any, array: Any, index: Any, low: Any, high: Any) -> Any:
    """Write ``array[index : index + 32]``, of 32 bits each, from their low and high halves."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, first, second = arguments
        order = ir.Constant(ir.VectorType(_I32, 64), [lane // 2 + lane % 2 * 32 for lane in range(64)])
        value = builder.shuffle_vector(first, second, order)
        builder.store(value, _address(context, builder, array, _BOTH, *place), align=1)
        return context.get_dummy_value()

    return types.void(array, index, low, high), build


@_intrinsic
def full(typing_context: Any, value: Any) -> Any:
    """An integer in all of sixteen words."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, WORDS, arguments[0])

    return WORDS(value), build


@_intrinsic
def full_halves(typing_context: Any, value: Any) -> Any:
    """An integer in all of 32 halves."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, HALVES, arguments[0])

    return HALVES(value), build


@_intrinsic
def words_of(typing_context: Any, halves: Any) -> Any:
    """The same bits as sixteen words: word k holds halves 2k, below, and 2k + 1."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], WORDS.vector)

    return WORDS(halves), build


@_intrinsic
def halves_of(typing_context: Any, words: Any) -> Any:
    """The same bits as 32 halves."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], HALVES.vector)

    return HALVES(words), build


@_intrinsic
def select(typing_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes of the mask, ``no`` in the others."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return yes(mask, yes, no), build


@_intrinsic
def count(typing_context: Any, mask: Any) -> Any:
    """How many lanes a mask has, int64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.zext(builder.bitcast(arguments[0], ir.IntType(mask.count)), _I64)
        return _call(builder, "llvm.ctpop.i64", _I64, bits)

    return types.int64(mask), build


@_intrinsic
def high_product(typing_context: Any, left: Any, right: Any) -> Any:
    """The upper 32 bits of the 64-bit product."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = Lanes(64, left.count)
        x, y = (builder.zext(argument, wide.vector) for argument in arguments)
        return builder.trunc(builder.lshr(builder.mul(x, y), _constant(wide, 32)), left.vector)

    return left(left, right), build


@_intrinsic
def saturating_difference(typing_context: Any, left: Any, right: Any) -> Any:
    """``left - right`` of signed halves, clamped to 16 bits: its sign is right whatever they are."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.ssub.sat.v32i16", HALVES.vector, *arguments)

    return left(left, right), build


@_intrinsic
def shift_in_sign(typing_context: Any, left: Any, right: Any) -> Any:
    """``left << 1 | right >> 15`` of halves."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.fshl.v32i16", HALVES.vector, *arguments, _constant(HALVES, 1))

    return left(left, right), build


@_intrinsic
def load_each(typing_context: Any, array: Any, index: Any) -> Any:
    """``array[index]`` lane by lane (faster than gathering on many machines) of an array of at most 32 bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.Constant(WORDS.vector, ir.Undefined)
        for lane, value in enumerate(_elements(context, builder, array, *arguments)):
            word = value if array.dtype.bitwidth == WORDS.bits else builder.zext(value, _I32)
            lanes = builder.insert_element(lanes, word, _I32(lane))
        return lanes

    return index(array, index), build


@_intrinsic
def load_pairs(typing_context: Any, array: Any, index: Any) -> Any:
    """The low and the high words of ``array[index]``, a uint64 array, lane by lane."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = WORDS.count // 2
        vectors = [ir.Constant(ir.VectorType(_I64, half), ir.Undefined)] * 2
        for lane, value in enumerate(_elements(context, builder, array, *arguments)):
            vectors[lane // half] = builder.insert_element(vectors[lane // half], value, _I32(lane % half))
        words = [builder.bitcast(vector, WORDS.vector) for vector in vectors]
        parts = (ir.Constant(WORDS.vector, list(range(first, 2 * WORDS.count, 2))) for first in range(2))
        pairs = [builder.shuffle_vector(*words, part) for part in parts]
        return context.make_tuple(builder, signature.return_type, pairs)

    return types.UniTuple(index, 2)(array, index), build  # type: ignore[no-untyped-call]


@_intrinsic
def blend(typing_context: Any, below: Any, above: Any) -> Any:
    """Permutes: words with the low half of the first and the high half of the second."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # As bits of a third operand decide: LLVM would make a permutation of the usual "and" and "or", which is slower.
        operands = (*arguments, _constant(WORDS, 0xFFFF), _I32(0xE4))
        return _call(builder, "llvm.x86.avx512.pternlog.d.512", WORDS.vector, *operands)

    return below(below, above), build


@_intrinsic
def look_up(typing_context: Any, table: Any, index: Any) -> Any:
    """Permutes: ``table[index % 32]`` of halves."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.x86.avx512.permvar.hi.512", HALVES.vector, *arguments)

    return index(table, index), build


@_intrinsic
def look_up_pair(typing_context: Any, table: Any, index: Any) -> Any:
    """Permutes: ``table[index % 64]`` of halves; the table is a pair of vectors."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (builder.extract_value(arguments[0], part) for part in range(2))
        return _call(builder, "llvm.x86.avx512.vpermi2var.hi.512", HALVES.vector, low, arguments[1], high)

    return index(table, index), build


@_intrinsic
def expand(typing_context: Any, halves: Any, mask: Any, others: Any) -> Any:
    """Permutes: the first halves, in order, in the lanes of the mask; ``others`` in the other lanes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, where, rest = arguments
        return _call(builder, "llvm.x86.avx512.mask.expand.v32i16", HALVES.vector, values, rest, where)

    return halves(halves, mask, others), build


@_intrinsic
def compress(typing_context: Any, halves: Any, mask: Any) -> Any:
    """Permutes: the halves in the lanes of the mask, in order, in the first lanes; 0 in the others."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, where = arguments
        nothing = _constant(HALVES, 0)
        return _call(builder, "llvm.x86.avx512.mask.compress.v32i16", HALVES.vector, values, nothing, where)

    return halves(halves, mask), build


@_intrinsic
def rotate(typing_context: Any, halves: Any, distance: Any) -> Any:
    """Permutes: lane ``(i + distance) % 32`` in lane i."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lane = builder.add(ir.Constant(HALVES.vector, list(range(32))), _spread(builder, HALVES, arguments[1]))
        return _call(builder, "llvm.x86.avx512.permvar.hi.512", HALVES.vector, arguments[0], lane)

    return halves(halves, distance), build
