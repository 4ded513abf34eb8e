"""The compiled half of `selective_scan_numba`: sixteen channels as one value, and the kernels made of them.

LLVM has no vector exponential of its own: here it is 2^k, written into the exponent's bits, times a
polynomial on [-1/2, 1/2]; off by less than 2e-7 in float32 and 4e-16 in float64.

Numba keeps what it compiles beside this file or in the user's cache folder, and sees by this file alone
whether that is old: all that is compiled stands in it.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16
"""Channels side by side."""
BLOCK = 64
"""Tokens between two states that are kept for the backward pass."""
SOFTPLUS_END = 20.0
"""From here on torch takes softplus(v) for v."""
LN2 = math.log(2)
SIZE = {"float": 4, "double": 8}
"""Bytes, by LLVM's names."""

Function = TypeVar("Function", bound=Callable[..., Any])
Builder: TypeAlias = Any
Value: TypeAlias = Any


# ---- values of sixteen channels ---------------------------------------------------------------------------


class Lanes(types.Type):
    """Numba's type of `LANES` numbers of a floating type."""

    def __init__(self, of: types.Float) -> None:
        super().__init__(name=f"Lanes({of})")
        self.of = of


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        scalar = manager.lookup(lanes.of).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(scalar, LANES))


def _spread(builder: Builder, scalar: Value) -> Value:
    """The same number in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    lane = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, lane)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, one, everywhere)


def _constant(like: Value, number: float) -> Value:
    return ir.Constant(like.type, [number] * LANES)


def _operator(name: str, symbol: Callable[..., Any]) -> None:
    """Arithmetic of lanes with lanes, or with a number of their type; a product and its sum are fused."""

    @type_callable(symbol)
    def typed(context: Any) -> Any:
        def of(left: Any, right: Any) -> Any:
            pair = (left, right)
            found = next((one for one in pair if isinstance(one, Lanes)), None)
            fits = found and all(one == found or isinstance(one, types.Float) for one in pair)
            return found if fits else None

        return inspect.unwrap(of)

    def lower(context: Any, builder: Builder, signature: Any, pair: Sequence[Value]) -> Value:
        of, lanes = signature.return_type.of, []
        for value, kind in zip(pair, signature.args, strict=True):
            same = isinstance(kind, Lanes)
            lanes.append(value if same else _spread(builder, context.cast(builder, value, kind, of)))
        return getattr(builder, name)(*lanes, flags=["contract"])

    for kinds in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(symbol, *kinds)(lower)


for _name, _symbol in (("fadd", operator.add), ("fsub", operator.sub), ("fmul", operator.mul)):
    _operator(_name, _symbol)


def _place(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
    """Pointer to a number of a flat array, by index."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _read(builder: Builder, place: Value) -> Value:
    """Lanes from a pointer to the first on."""
    scalar = place.type.pointee
    whole = builder.bitcast(place, ir.VectorType(scalar, LANES).as_pointer())
    return builder.load(whole, align=SIZE[str(scalar)])


def _write(builder: Builder, lanes: Value, place: Value) -> None:
    whole = builder.bitcast(place, lanes.type.as_pointer())
    builder.store(lanes, whole, align=SIZE[str(lanes.type.element)])


def _read_some(builder: Builder, place: Value, count: Value) -> Value:
    """The first `count` lanes, then zeros."""
    room = cgutils.alloca_once(builder, ir.VectorType(place.type.pointee, LANES))
    builder.store(ir.Constant(room.type.pointee, None), room)
    first = builder.bitcast(room, place.type)
    with cgutils.for_range(builder, count) as loop:
        builder.store(builder.load(builder.gep(place, [loop.index])), builder.gep(first, [loop.index]))
    return builder.load(room)


def _write_some(builder: Builder, lanes: Value, place: Value, count: Value) -> None:
    """The first `count` lanes."""
    room = cgutils.alloca_once(builder, lanes.type)
    builder.store(lanes, room)
    first = builder.bitcast(room, place.type)
    with cgutils.for_range(builder, count) as loop:
        builder.store(builder.load(builder.gep(first, [loop.index])), builder.gep(place, [loop.index]))


def _is_whole(builder: Builder, count: Value) -> Value:
    return builder.icmp_signed("==", count, ir.Constant(count.type, LANES))


@intrinsic
def load(typing: Any, array: Any, at: Any) -> Any:
    """Lanes of a flat array, from `at` on."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return _read(builder, _place(context, builder, signature, arguments))

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, at: Any, lanes: Any) -> Any:
    """Lanes into a flat array, from `at` on."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        _write(builder, arguments[2], _place(context, builder, signature, arguments))
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic
def _row(typing: Any, array: Any, at: Any, count: Any) -> Any:
    """As `load`, but only `count` lanes, then zeros."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        place, count = _place(context, builder, signature, arguments), arguments[2]
        found = []
        with builder.if_else(_is_whole(builder, count)) as (whole, part):
            with whole:
                found.append((_read(builder, place), builder.block))
            with part:
                found.append((_read_some(builder, place, count), builder.block))
        lanes = builder.phi(found[0][0].type)
        for value, block in found:
            lanes.add_incoming(value, block)
        return lanes

    return Lanes(array.dtype)(array, types.intp, types.intp), generate


@intrinsic
def _put(typing: Any, array: Any, at: Any, count: Any, lanes: Any) -> Any:
    """As `store`, but only `count` lanes."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        place, count = _place(context, builder, signature, arguments), arguments[2]
        with builder.if_else(_is_whole(builder, count)) as (whole, part):
            with whole:
                _write(builder, arguments[3], place)
            with part:
                _write_some(builder, arguments[3], place, count)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, lanes), generate


@intrinsic
def _same(typing: Any, array: Any, at: Any) -> Any:
    """One number of a flat array, in every lane."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return _spread(builder, builder.load(_place(context, builder, signature, arguments)))

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def _none(typing: Any, array: Any) -> Any:
    """Lanes of zeros, of the type of an array."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Lanes(array.dtype)(array), generate


@intrinsic
def _total(typing: Any, lanes: Any) -> Any:
    """Sum over the lanes, by halves."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        kind, scalar = arguments[0].type, arguments[0].type.element
        name = f"llvm.vector.reduce.fadd.v{LANES}f{lanes.of.bitwidth}"
        reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(scalar, [scalar, kind]), name)
        return builder.call(reduce, [ir.Constant(scalar, -0.0), arguments[0]], fastmath=("reassoc",))

    return lanes.of(lanes), generate


# ---- functions of lanes -----------------------------------------------------------------------------------


def _polynomial(builder: Builder, at: Value, terms: Sequence[float]) -> Value:
    """Terms from the lowest power up, by Horner's rule."""
    value = _constant(at, terms[-1])
    for term in reversed(terms[:-1]):
        product = builder.fmul(value, at, flags=["contract"])
        value = builder.fadd(product, _constant(at, term), flags=["contract"])
    return value


def _powers_of_two(bits: int) -> list[float]:
    """Terms of 2^f on [-1/2, 1/2], exactly 1 at 0: what decays slowly is not off by a constant factor."""
    if bits == 64:
        return [LN2**n / math.factorial(n) for n in range(14)]
    nodes = np.cos((np.arange(6) + 0.5) * np.pi / 6) / 2
    rest = np.polynomial.Polynomial.fit(nodes, np.expm1(nodes * LN2) / nodes, 5).convert()
    return [1.0, *rest.coef.tolist()]


def _exp2(builder: Builder, v: Value) -> Value:
    """2^v: 0 below the smallest normal number, infinity above the largest; what is no number stays none."""
    bits, mantissa = (32, 23) if isinstance(v.type.element, ir.FloatType) else (64, 52)
    bias = 2 ** (bits - mantissa - 2) - 1
    for sign, end in (("<", -bias), (">", bias + 1)):
        end = _constant(v, float(end))
        v = builder.select(builder.fcmp_ordered(sign, v, end), end, v)
    # Adding this rounds to a whole number and leaves it, with the exponent's bias, in the lowest bits.
    rounder = _constant(v, 1.5 * 2**mantissa + bias)
    rounded = builder.fadd(v, rounder)
    left = builder.fsub(v, builder.fsub(rounded, rounder))
    whole = ir.VectorType(ir.IntType(bits), LANES)
    exponent = builder.shl(builder.bitcast(rounded, whole), ir.Constant(whole, [mantissa] * LANES))
    return builder.fmul(_polynomial(builder, left, _powers_of_two(bits)), builder.bitcast(exponent, v.type))


def _sigmoid(builder: Builder, v: Value) -> Value:
    one = _constant(v, 1.0)
    away = _exp2(builder, builder.fmul(v, _constant(v, -1 / LN2)))
    return builder.fdiv(one, builder.fadd(one, away))


def _softplus(builder: Builder, v: Value) -> Value:
    """max(v, 0) + log1p(u), u = exp(-|v|); log1p by the series of atanh(u / (2 + u)), at most 1/3."""
    zero, terms = _constant(v, 0.0), 8 if isinstance(v.type.element, ir.FloatType) else 17
    above = builder.fcmp_ordered(">", v, zero)
    u = _exp2(builder, builder.fmul(builder.select(above, builder.fneg(v), v), _constant(v, 1 / LN2)))
    ratio = builder.fdiv(u, builder.fadd(u, _constant(v, 2.0)))
    series = _polynomial(builder, builder.fmul(ratio, ratio), [2 / (2 * n + 1) for n in range(terms)])
    soft = builder.fadd(builder.select(above, v, zero), builder.fmul(ratio, series))
    return builder.select(builder.fcmp_ordered(">", v, _constant(v, SOFTPLUS_END)), v, soft)


def _softplus_slope(builder: Builder, v: Value) -> Value:
    far = builder.fcmp_ordered(">", v, _constant(v, SOFTPLUS_END))
    return builder.select(far, _constant(v, 1.0), _sigmoid(builder, v))


def _function(build: Callable[[Builder, Value], Value]) -> Any:
    """Of lanes, for use in kernels."""

    @intrinsic
    def of(typing: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
            return build(builder, arguments[0])

        return lanes(lanes), generate

    return of


exp2, sigmoid, softplus, softplus_slope = map(_function, (_exp2, _sigmoid, _softplus, _softplus_slope))


# ---- kernels ----------------------------------------------------------------------------------------------


def _compiled(function: Function) -> Function:
    """By Numba, when it is first called; kept on disk where that is possible."""
    plain = inspect.unwrap(function)  # of what a test run wraps around it
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(plain)
    except RuntimeError:  # no folder to keep it in
        return numba.njit(**options)(plain)


def _helper(function: Function) -> Function:
    """Of a kernel that calls it."""
    return numba.njit(error_model="numpy")(inspect.unwrap(function))


class Item(NamedTuple):
    """One sequence: flat arrays, with numbers from one token to the next.

    Args:
        x, delta, z: T rows of E. b, c: T rows of N. *_row: numbers from one row to the next.
    """

    x: np.ndarray
    delta: np.ndarray
    z: np.ndarray
    b: np.ndarray
    c: np.ndarray
    x_row: int
    delta_row: int
    z_row: int
    b_row: int
    c_row: int


class Layer(NamedTuple):
    """What all sequences share, in groups of `LANES` channels, zeros where there is no channel.

    Args:
        a: (groups, N, LANES), in powers of two. d, bias: (groups, LANES); flat.
        tokens, channels, states: T, E, N. soft: steps go through the softplus. gated: z counts.
    """

    a: np.ndarray
    d: np.ndarray
    bias: np.ndarray
    tokens: int
    channels: int
    states: int
    soft: bool
    gated: bool


class Sums(NamedTuple):
    """Gradients of one sequence, flat and contiguous: those of rows whole, the others in groups.

    Args:
        x, delta, z: (T, E). b, c: (T, N). a: (groups, N, LANES). d, bias: (groups, LANES).
    """

    x: np.ndarray
    delta: np.ndarray
    z: np.ndarray
    b: np.ndarray
    c: np.ndarray
    a: np.ndarray
    d: np.ndarray
    bias: np.ndarray


@_compiled
def forward(
    item: Item, layer: Layer, groups: tuple[int, int], keep: bool, out: np.ndarray, kept: np.ndarray
) -> None:
    """Output (T, E) of some groups of channels.

    Args:
        groups: first one, and the one after the last. keep: fill `kept`, the states before every block,
            (blocks, groups, N, LANES).
    """
    a, ds, biases, tokens, channels, states, soft, gated = layer
    x_, delta, z_, b, c, x_row, delta_row, z_row, b_row, c_row = item
    tile, every = states * LANES, len(ds) // LANES
    state = np.zeros(every * tile, out.dtype)
    for start in range(0, tokens, BLOCK):
        for group in range(groups[0], groups[1]):
            here, e = group * tile, group * LANES
            count = min(LANES, channels - e)
            if keep:
                first = (start // BLOCK * every + group) * tile
                kept[first : first + tile] = state[here : here + tile]
            bias, d = load(biases, e), load(ds, e)
            for t in range(start, min(start + BLOCK, tokens)):
                step = _row(delta, t * delta_row + e, count) + bias
                if soft:
                    step = softplus(step)
                x = _row(x_, t * x_row + e, count)
                y, entering = x * d, step * x
                for n in range(states):
                    at = here + n * LANES
                    decay = exp2(step * load(a, at))
                    h = decay * load(state, at) + entering * _same(b, t * b_row + n)
                    store(state, at, h)
                    y = y + h * _same(c, t * c_row + n)
                if gated:
                    z = _row(z_, t * z_row + e, count)
                    y = y * (z * sigmoid(z))
                _put(out, t * channels + e, count, y)


class Room(NamedTuple):
    """Memory for one block of one group of channels, flat.

    Args:
        states: (BLOCK + 1, N, LANES), the first one before the block. decays: (BLOCK, N, LANES).
        steps, dys: (BLOCK, LANES), step sizes and the gradient of what is read. a: (N, LANES), its gradient.
    """

    states: np.ndarray
    decays: np.ndarray
    steps: np.ndarray
    dys: np.ndarray
    a: np.ndarray


@_helper
def _again(
    item: Item, layer: Layer, room: Room, dout: np.ndarray, span: tuple[int, int], group: int, into: Sums
) -> None:
    """Fills the room from the state before the block; gradient of the gate."""
    a, ds, biases, _, channels, states, soft, gated = layer
    x_, delta, z_, b, c, x_row, delta_row, z_row, b_row, c_row = item
    kept, decays, steps, dys, _ = room
    dz, tile, e = into.z, states * LANES, group * LANES
    count = min(LANES, channels - e)
    bias, d = load(biases, e), load(ds, e)
    for t in range(span[0], span[1]):
        k = t - span[0]
        step = _row(delta, t * delta_row + e, count) + bias
        if soft:
            step = softplus(step)
        x = _row(x_, t * x_row + e, count)
        y, entering = x * d, step * x
        for n in range(states):
            at = k * tile + n * LANES
            decay = exp2(step * load(a, group * tile + n * LANES))
            h = decay * load(kept, at) + entering * _same(b, t * b_row + n)
            store(decays, at, decay)
            store(kept, at + tile, h)
            y = y + h * _same(c, t * c_row + n)
        dy = _row(dout, t * channels + e, count)
        if gated:
            z = _row(z_, t * z_row + e, count)
            gate = sigmoid(z)
            # z * sigmoid(z) has the slope gate * (1 + z - z * gate)
            _put(dz, t * channels + e, count, dy * y * (gate + gate * (z - z * gate)))
            dy = dy * (z * gate)
        store(steps, k * LANES, step)
        store(dys, k * LANES, dy)


@_helper
def _back(
    item: Item, layer: Layer, room: Room, after: np.ndarray, span: tuple[int, int], group: int, into: Sums
) -> None:
    """Gradients of a block's inputs; `after`, that of the state at its end, becomes that at its start."""
    a, ds, biases, _, channels, states, soft, _ = layer
    x_, delta, _, b, c, x_row, delta_row, _, b_row, c_row = item
    kept, decays, steps, dys, da = room
    dx_, ddelta, _, db, dc, _, dd_, dbias_ = into
    tile, e = states * LANES, group * LANES
    count, first = min(LANES, channels - e), group * tile
    bias, d = load(biases, e), load(ds, e)
    dd, dbias = _none(dd_), _none(dd_)
    da[:] = 0
    for t in range(span[1] - 1, span[0] - 1, -1):
        k = t - span[0]
        step, dy = load(steps, k * LANES), load(dys, k * LANES)
        x = _row(x_, t * x_row + e, count)
        entered, slope, entering = _none(dd_), _none(dd_), step * x
        for n in range(states):
            here, at = n * LANES, k * tile + n * LANES
            sent = load(after, first + here) + dy * _same(c, t * c_row + n)
            dc[t * states + n] += _total(dy * load(kept, at + tile))
            db[t * states + n] += _total(sent * entering)
            entered = entered + sent * _same(b, t * b_row + n)
            sent = sent * load(decays, at)
            store(after, first + here, sent)
            log = sent * load(kept, at)
            slope = slope + log * load(a, first + here)
            store(da, here, load(da, here) + log * step)
        of_step = slope * LN2 + entered * x
        if soft:
            of_step = of_step * softplus_slope(_row(delta, t * delta_row + e, count) + bias)
        _put(ddelta, t * channels + e, count, of_step)
        _put(dx_, t * channels + e, count, entered * step + dy * d)
        dd, dbias = dd + dy * x, dbias + of_step
    # sums of a block first: sums of sums are exact to more digits
    store(dd_, e, load(dd_, e) + dd)
    store(dbias_, e, load(dbias_, e) + dbias)
    into.a[first : first + tile] += da


@_compiled
def backward(
    item: Item, layer: Layer, groups: tuple[int, int], kept: np.ndarray, dout: np.ndarray, into: Sums
) -> None:
    """Gradients of one sequence through some groups of channels; what it adds to starts from zeros."""
    tile, every = layer.states * LANES, len(layer.d) // LANES
    after = np.zeros(every * tile, dout.dtype)
    states, decays = np.empty((BLOCK + 1) * tile, dout.dtype), np.empty(BLOCK * tile, dout.dtype)
    steps, dys = np.empty(BLOCK * LANES, dout.dtype), np.empty(BLOCK * LANES, dout.dtype)
    room = Room(states, decays, steps, dys, np.empty(tile, dout.dtype))
    for start in range((layer.tokens - 1) // BLOCK * BLOCK, -1, -BLOCK):
        span = (start, min(start + BLOCK, layer.tokens))
        for group in range(groups[0], groups[1]):
            first = (start // BLOCK * every + group) * tile
            states[:tile] = kept[first : first + tile]
            _again(item, layer, room, dout, span, group, into)
            _back(item, layer, room, after, span, group, into)
