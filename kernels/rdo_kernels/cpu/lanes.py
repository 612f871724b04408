"""Vectors of unsigned integers for numba: arithmetic by operators, and permutations.

numba compiles scalar loops only; here a vector of LLVM becomes a type of its own, so that a loop over lanes that depend
on memory (look-ups, and moving the lanes that meet a condition together or apart) is written as it is meant to run.
The operators work on any machine; the rest is written for AVX-512 with VBMI2 and for AVX2, see :func:`available`.

numba recompiles a cached loop when the file of the loop changes, not when this one does: then touch that one too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core.cgutils import get_or_insert_function, global_constant
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))


def available() -> bool:
    """Whether numba compiles for a machine on which vectors are worth it."""
    return not config.DISABLE_JIT and "+avx2" in _features()  # type: ignore[attr-defined]


def permutes() -> bool:
    """Whether it has the permutations of :func:`look_up`."""
    return _features() >= {"+avx512bw", "+avx512vbmi2"}


@cache
def _features() -> frozenset[str]:
    return frozenset(str(cpu_target.target_context.codegen().magic_tuple()[2]).split(","))


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
_BOTH, _EIGHT, _BYTES = ir.VectorType(_I16, 64), ir.VectorType(_I16, 8), ir.VectorType(ir.IntType(8), 16)


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


def _data(context: Any, builder: Any, array: Any, value: Any) -> Any:
    """Pointer to the first element of an array of one axis."""
    if array.layout != "C" or array.ndim != 1:
        raise TypeError(f"vectors are read from contiguous arrays of one axis, not from {array}")
    return context.make_array(array)(context, builder, value).data


def _address(context: Any, builder: Any, array: Any, vector: Any, value: Any, index: Any) -> Any:
    """Pointer to the vector that begins at an index."""
    return builder.bitcast(builder.gep(_data(context, builder, array, value), [index]), vector.as_pointer())


def _elements(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Iterator[Any]:
    """The elements of an array at each lane of an index."""
    data = _data(context, builder, array, value)
    for lane in range(WORDS.count):
        place = builder.zext(builder.extract_element(index, _I32(lane)), _I64)
        yield builder.load(builder.gep(data, [place]))


def _shuffles(builder: Any, mask: Any, expanding: bool) -> list[tuple[Any, Any]]:
    """For each eight lanes of a mask: how to shuffle the bytes of eight halves, and how many lanes it has, int64.

    Expanding brings the first halves to the lanes of the mask; otherwise its lanes are brought to the last halves.
    """
    orders = []
    for bits in range(256):
        lanes = [lane for lane in range(8) if bits >> lane & 1]
        pairs = zip(lanes, range(8), strict=False) if expanding else zip(range(8 - len(lanes), 8), lanes, strict=True)
        source = dict(pairs)
        order = [2 * source[lane] + byte if lane in source else 0x80 for lane in range(8) for byte in range(2)]
        orders.append(ir.Constant(_BYTES, order))
    table = ir.Constant(ir.ArrayType(_BYTES, 256), orders)
    name = "rdo_expand" if expanding else "rdo_compress"
    pointer = global_constant(builder, name, table)  # type: ignore[no-untyped-call]
    bits = builder.zext(builder.bitcast(mask, _I32), _I64)
    groups = [builder.and_(builder.lshr(bits, _I64(first)), _I64(0xFF)) for first in range(0, 32, 8)]
    return [
        (builder.load(builder.gep(pointer, [_I64(0), group])), _call(builder, "llvm.ctpop.i64", _I64, group))
        for group in groups
    ]


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
    """Words with the low half of the first and the high half of the second."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = arguments
        if permutes():
            # As bits of a third operand decide; LLVM would make a slower permutation of what follows.
            operands = (low, high, _constant(WORDS, 0xFFFF), _I32(0xE4))
            return _call(builder, "llvm.x86.avx512.pternlog.d.512", WORDS.vector, *operands)
        kept = builder.and_(low, _constant(WORDS, 0xFFFF)), builder.and_(high, _constant(WORDS, 0xFFFF0000))
        return builder.or_(*kept)

    return below(below, above), build


@_intrinsic
def take(typing_context: Any, array: Any, index: Any, mask: Any, others: Any) -> Any:
    """``array[index]``, ``array[index + 1]``, ... in the lanes of the mask, in order; ``others`` in the other lanes.

    Reads no more than ``array[index : index + 32]``, which is uint16.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, where, rest = arguments
        if permutes():
            values = builder.load(_address(context, builder, array, HALVES.vector, *place), align=1)
            return _call(builder, "llvm.x86.avx512.mask.expand.v32i16", HALVES.vector, values, rest, where)
        address = _address(context, builder, array, _I16, *place)
        parts = []
        for order, lanes in _shuffles(builder, where, expanding=True):
            values = builder.load(builder.bitcast(address, _BYTES.as_pointer()), align=1)
            parts.append(builder.bitcast(_call(builder, "llvm.x86.ssse3.pshuf.b.128", _BYTES, values, order), _EIGHT))
            address = builder.gep(address, [lanes])
        while len(parts) > 1:
            order = ir.Constant(ir.VectorType(_I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
            parts = [builder.shuffle_vector(*parts[i : i + 2], order) for i in range(0, len(parts), 2)]
        return builder.select(where, parts[0], rest)

    return others(array, index, mask, others), build


@_intrinsic
def put(typing_context: Any, array: Any, index: Any, mask: Any, halves: Any) -> Any:
    """Write the lanes of the mask, in order, so that they end before ``array[index]``.

    Overwrites ``array[index - 32 : index]``, which is uint16, or less of it.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, where, values = arguments
        if permutes():
            address = _address(context, builder, array, HALVES.vector, *place)
            nothing = _constant(HALVES, 0)
            values = _call(builder, "llvm.x86.avx512.mask.compress.v32i16", HALVES.vector, values, nothing, where)
            distance = _spread(builder, HALVES, _call(builder, "llvm.ctpop.i32", _I32, builder.bitcast(where, _I32)))
            lane = builder.add(ir.Constant(HALVES.vector, list(range(HALVES.count))), distance)
            values = _call(builder, "llvm.x86.avx512.permvar.hi.512", HALVES.vector, values, lane)
            builder.store(values, builder.gep(address, [_I64(-1)]), align=1)
            return context.get_dummy_value()
        address = _address(context, builder, array, _I16, *place)
        for group, (order, lanes) in reversed(list(enumerate(_shuffles(builder, where, expanding=False)))):
            part = ir.Constant(ir.VectorType(_I32, 8), list(range(8 * group, 8 * group + 8)))
            eight = builder.bitcast(builder.shuffle_vector(values, values, part), _BYTES)
            eight = _call(builder, "llvm.x86.ssse3.pshuf.b.128", _BYTES, eight, order)
            end = builder.bitcast(address, _BYTES.as_pointer())
            builder.store(eight, builder.gep(end, [_I64(-1)]), align=1)
            address = builder.gep(address, [builder.neg(lanes)])
        return context.get_dummy_value()

    return types.void(array, index, mask, halves), build


@_intrinsic
def look_up(typing_context: Any, table: Any, index: Any) -> Any:
    """``table[index % 32]`` of halves, where :func:`permutes`."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.x86.avx512.permvar.hi.512", HALVES.vector, *arguments)

    return index(table, index), build


@_intrinsic
def look_up_pair(typing_context: Any, table: Any, index: Any) -> Any:
    """``table[index % 64]`` of halves, where :func:`permutes`; the table is a pair of vectors."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (builder.extract_value(arguments[0], part) for part in range(2))
        return _call(builder, "llvm.x86.avx512.vpermi2var.hi.512", HALVES.vector, low, arguments[1], high)

    return index(table, index), build
