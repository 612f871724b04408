"""What numba lacks: addresses as pointers, bits as numbers, atomic additions, and comparisons of 64 bytes at once."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _cast(result: Any, argument: Any, instruction: str) -> Any:
    """A compiled function that only changes the type of its argument."""

    def typed(typing_context: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(arguments[0], context.get_value_type(signature.return_type))

        return result(argument), build

    return intrinsic(typed)


int8_at = _cast(types.CPointer(types.int8), types.int64, "inttoptr")  # type: ignore[no-untyped-call]
int16_at = _cast(types.CPointer(types.int16), types.int64, "inttoptr")  # type: ignore[no-untyped-call]
int32_at = _cast(types.CPointer(types.int32), types.int64, "inttoptr")  # type: ignore[no-untyped-call]
int64_at = _cast(types.CPointer(types.int64), types.int64, "inttoptr")  # type: ignore[no-untyped-call]
float32_at = _cast(types.CPointer(types.float32), types.int64, "inttoptr")  # type: ignore[no-untyped-call]
float64_at = _cast(types.CPointer(types.float64), types.int64, "inttoptr")  # type: ignore[no-untyped-call]
bits_of = _cast(types.int32, types.float32, "bitcast")
float_of = _cast(types.float32, types.int32, "bitcast")


def _fetch_add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address and return what it was; no addition of another thread is lost."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], context.get_value_type(types.int64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), build


def _vector(builder: Any, address: Any) -> Any:
    """The 64 bytes at an address."""
    pointer = builder.inttoptr(address, ir.VectorType(ir.IntType(8), 64).as_pointer())
    return builder.load(pointer, align=1)


def _splat(builder: Any, byte: Any) -> Any:
    vector = ir.VectorType(ir.IntType(8), 64)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), byte, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        single, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
    )


def _mask_equal(typing_context: Any, address: Any, byte: Any) -> Any:
    """Which of the 64 bytes at an address are equal to a byte: a bit for each."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        same = builder.icmp_signed("==", _vector(builder, arguments[0]), _splat(builder, arguments[1]))
        return builder.bitcast(same, ir.IntType(64))

    return types.uint64(types.int64, types.int8), build


def _ones(typing_context: Any, mask: Any) -> Any:
    """How many bits are set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), build


def _trailing_zeros(typing_context: Any, mask: Any) -> Any:
    """Position of the lowest bit that is set; there must be one."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), build


def _mark_caller(typing_context: Any) -> Any:
    """Keep the compiler from inlining the function that calls this."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), build


never_inline: Any = intrinsic(_mark_caller)
fetch_add: Any = intrinsic(_fetch_add)
mask_equal: Any = intrinsic(_mask_equal)
ones: Any = intrinsic(_ones)
trailing_zeros: Any = intrinsic(_trailing_zeros)
