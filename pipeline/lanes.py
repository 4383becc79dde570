"""How does compiled code work on several numbers at a time? In one vector register.

numba has no vector type, and leaves it to chance whether a loop becomes vector instructions; the mean field (over the classes of a pixel)
and the blending (over the pixels of a row) spend all their time in such loops. So this module gives it one: float32 values that are
loaded, multiplied and stored at once. LLVM turns it into what the processor has (AVX, two halves of SSE or NEON).

There are eight of them, or as many as a tuple has members that `load`, `load_half` and `broadcast` are given: compiled code knows the
length of a tuple, and nothing else of it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.extending import register_model
from numba.extending import intrinsic

from pipeline.lane_count import N_LANES

if TYPE_CHECKING:
    from collections.abc import Callable


LOWEST = -60.0
"""exp of less is 0: numbers so small that a product of two of them is denormal are slow."""


class LanesType(types.Type):  # type: ignore[misc]  # numba has no types
    """The numba type of ``n`` float32 values in one register."""

    def __init__(self, n: int) -> None:
        super().__init__(name=f"lanes{n}")
        self.n = n


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _vector(kind))


def _vector(lanes: Any, of: Any = None) -> Any:
    """Return what LLVM calls them, or as many of another type."""
    return ir.VectorType(of or ir.FloatType(), lanes.n)


def _lanes_like(like: Any) -> LanesType:
    """Return as many lanes as the tuple that was given has members; eight where none was."""
    return LanesType(N_LANES if like is None else like.count)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, start: Any, kind: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [start]), kind.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(_typing: Any, array: Any, _start: Any, like: Any = None) -> Any:
    """Return ``array[start : start + n]`` of a contiguous float32 array."""
    lanes = _lanes_like(like)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _vector(lanes)), align=4)

    return lanes(array, types.intp, types.none if like is None else like), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, array: Any, _index: Any) -> Any:
    """Begin to load ``array[index]`` into the cache: what a table is asked for soon need not be waited for then."""
    byte = ir.IntType(8).as_pointer()
    number = ir.IntType(32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read_and_keep = [ir.Constant(number, value) for value in (0, 3, 1)]
        builder.call(function, [builder.bitcast(builder.gep(data, [args[1]]), byte), *to_read_and_keep])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(_typing: Any, array: Any, _start: Any, value: Any) -> Any:
    """Set ``array[start : start + n]`` of a contiguous float32 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1], args[2].type), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_half(_typing: Any, array: Any, _start: Any, like: Any = None) -> Any:
    """Return ``array[start : start + n]`` of a contiguous array of float16 (typed int16), as float32."""
    lanes = _lanes_like(like)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _vector(lanes, ir.HalfType()))
        return builder.fpext(builder.load(pointer, align=2), _vector(lanes))

    return lanes(array, types.intp, types.none if like is None else like), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_half(_typing: Any, array: Any, _start: Any, value: Any) -> Any:
    """Set ``array[start : start + n]`` of a contiguous array of float16 (typed int16), rounding."""
    kind = _vector(value, ir.HalfType())

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        halves = builder.fptrunc(args[2], kind)
        builder.store(halves, _pointer(context, builder, signature.args[0], args[0], args[1], kind), align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def broadcast(_typing: Any, _value: Any, like: Any = None) -> Any:
    """Return n times the same number."""
    lanes = _lanes_like(like)

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _vector(lanes))

    return lanes(types.float32, types.none if like is None else like), generate


@intrinsic  # type: ignore[untyped-decorator]
def ramp(_typing: Any, _value: Any) -> Any:
    """Return value, value + 1, ... value + 7."""
    lanes = _lanes_like(None)

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = _vector(lanes)
        return builder.fadd(_splat(builder, args[0], kind), ir.Constant(kind, [float(lane) for lane in range(lanes.n)]))

    return lanes(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def multiply_add(_typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _fma(builder, *args)

    return a(a, b, c), generate


@intrinsic  # type: ignore[untyped-decorator]
def exponential(_typing: Any, value: Any) -> Any:
    """Return exp(value) for values up to 88, to 2e-7 of itself (Cephes' expf: 2^n times a polynomial of the rest); 0 below -60."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        def number(constant: float) -> Any:
            return ir.Constant(args[0].type, [constant] * value.n)

        integers = _vector(value, ir.IntType(32))

        x = _larger(builder, args[0], number(LOWEST))
        n = _call(builder, "rint", builder.fmul(x, number(1.44269504088896341)))
        rest = _fma(builder, n, number(-0.693359375), x)
        rest = _fma(builder, n, number(2.12194440e-4), rest)
        p = number(1.9875691500e-4)
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = _fma(builder, p, rest, number(coefficient))
        p = _fma(builder, builder.fmul(rest, rest), p, builder.fadd(rest, number(1.0)))
        bits = builder.add(builder.fptosi(n, integers), ir.Constant(integers, [127] * value.n))
        power = builder.bitcast(builder.shl(bits, ir.Constant(integers, [23] * value.n)), args[0].type)
        return builder.select(builder.fcmp_ordered(">", args[0], number(LOWEST)), builder.fmul(p, power), number(0.0))

    return value(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def largest(_typing: Any, value: Any) -> Any:
    """Return the largest of them."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], lambda a, b: _larger(builder, a, b))

    return types.float32(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def total(_typing: Any, value: Any) -> Any:
    """Return the sum of them, always added in the same order."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], builder.fadd)

    return types.float32(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def add(_typing: Any, a: Any, b: Any) -> Any:
    """Return a + b."""
    return a(a, b), lambda _context, builder, _signature, args: builder.fadd(*args)


@intrinsic  # type: ignore[untyped-decorator]
def subtract(_typing: Any, a: Any, b: Any) -> Any:
    """Return a - b."""
    return a(a, b), lambda _context, builder, _signature, args: builder.fsub(*args)


@intrinsic  # type: ignore[untyped-decorator]
def multiply(_typing: Any, a: Any, b: Any) -> Any:
    """Return a * b."""
    return a(a, b), lambda _context, builder, _signature, args: builder.fmul(*args)


@intrinsic  # type: ignore[untyped-decorator]
def maximum(_typing: Any, a: Any, b: Any) -> Any:
    """Return the larger of each pair."""
    return a(a, b), lambda _context, builder, _signature, args: _larger(builder, *args)


@intrinsic  # type: ignore[untyped-decorator]
def magnitude(_typing: Any, value: Any) -> Any:
    """Return the absolute values."""
    return value(value), lambda _context, builder, _signature, args: _call(builder, "fabs", *args)


@intrinsic  # type: ignore[untyped-decorator]
def round_down(_typing: Any, value: Any) -> Any:
    """Return the largest integers that are not above the values."""
    return value(value), lambda _context, builder, _signature, args: _call(builder, "floor", *args)


@intrinsic  # type: ignore[untyped-decorator]
def less(_typing: Any, a: Any, b: Any) -> Any:
    """Return 1 where a < b, else 0."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        one, zero = (ir.Constant(_vector(a), [number] * a.n) for number in (1.0, 0.0))
        return builder.select(builder.fcmp_ordered("<", *args), one, zero)

    return a(a, b), generate


def _splat(builder: Any, scalar: Any, kind: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, _positions([0] * kind.count))


def _positions(lanes: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _fma(builder: Any, *args: Any) -> Any:
    return _call(builder, "fma", *args)


def _call(builder: Any, name: str, *args: Any) -> Any:
    """Call an LLVM intrinsic on whole vectors."""
    kind = args[0].type
    function = ir.FunctionType(kind, [kind] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}f32"), args)


def _fold(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine halves until one number is left."""
    n = vector.type.count
    width = n // 2
    while width:
        swap = _positions([(lane + width) % n for lane in range(n)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, swap))
        width //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
