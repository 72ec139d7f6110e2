"""Filters of the command line over columns whose types are known: a tree becomes a `pyarrow` expression.

Arrow casts what stands beside each other to a type of its own choice, and loses digits, wraps around
or fails in the middle of a scan. So nothing is left to it: all casts are chosen here, and they are exact.

1. A constant beside a column takes the column's type, and the column stays as it is, so that Arrow
   can skip row groups by their statistics. Where the type does not have that value, the comparison is
   one with the next value below: ``x < 2.5`` of whole numbers is ``x <= 2``, ``x == 2.5`` holds nowhere.
2. Whole numbers and decimals are calculated and compared with each other as 64-bit integers where
   every result fits those, else as decimals of up to 76 digits; what may take more is refused.
3. Beside a float, and by ``/``, everything is calculated as a 64-bit float: the nearest one. Floats
   compare with each other and with integers of at most 32 bits; what has no exact float is refused.
   A number with a point beside floats is the nearest one of the column's width.
4. Dates and times of several units compare by whole numbers of the finer unit.

As in SQL a null passes no comparison, and neither ``in`` nor ``not in``, nor what is the opposite of
any of these. NaN is a value, and passes ``!=`` and opposites, but where Arrow does not know of it:
a Parquet row group in which all other values of a column are one and the same is to Arrow of that value.

Pure functions, any thread.
"""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from math import floor, inf, isinf
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from headrace._filter import (
    Arithmetic,
    Column,
    Comparison,
    Constant,
    FilterError,
    Logic,
    Membership,
    Missing,
    Moment,
    Node,
    Opposite,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace._filter import Number

_MOST_DIGITS_128, _MOST_DIGITS_256 = 38, 76
_EXACT_IN_FLOAT_BITS = 32
_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_NS_PER_DAY = 86_400 * 10**9

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "and": operator.and_,
    "or": operator.or_,
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

_UNKNOWN = pc.scalar(pa.scalar(None, pa.bool_()))

# What a type compares with, and how that is written; None stands for what only 'is None' understands.
_KINDS: tuple[tuple[Callable[[pa.DataType], bool], str | None], ...] = (
    (pa.types.is_integer, "number"),
    (pa.types.is_float32, "number"),
    (pa.types.is_float64, "number"),
    (pa.types.is_decimal, "number"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_binary, "text"),
    (pa.types.is_large_binary, "text"),
    (pa.types.is_boolean, "bool"),
    (pa.types.is_date, "moment"),
    (lambda type_: pa.types.is_timestamp(type_) and type_.tz is None, "moment"),
    (pa.types.is_timestamp, "zoned"),
    (pa.types.is_time, "time"),
    (pa.types.is_null, "null"),
    (lambda _: True, None),
)
_WRITTEN = {
    "number": "numbers",
    "text": "strings, 'text'",
    "bool": "True and False",
    "moment": 'date("1994-01-01") and timestamp("1994-01-01T12:00")',
    "zoned": 'timestamp("1994-01-01T12:00+00:00"), with an offset',
    "time": 'time("12:00")',
    None: "nothing but 'is None' and 'is not None'",
}
_KINDS_OF_VALUES = {bool: "bool", int: "number", Fraction: "number", str: "text"}

# Arrow cannot compare these, but a type that holds the same values.
_COMPARABLE: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], pa.DataType]], ...] = (
    (pa.types.is_dictionary, lambda type_: _comparable(type_.value_type)),
    (pa.types.is_fixed_size_binary, lambda _: pa.binary()),
    (pa.types.is_string_view, lambda _: pa.large_string()),
    (pa.types.is_binary_view, lambda _: pa.large_binary()),
    (
        lambda type_: pa.types.is_decimal(type_) and type_.bit_width < 128,  # noqa: PLR2004
        lambda type_: pa.decimal128(type_.precision, type_.scale),
    ),
)


@dataclass(frozen=True, slots=True)
class _Typed:
    """What is computed for each row, and its type."""

    expression: pc.Expression
    type: pa.DataType
    node: Node

    @property
    def text(self) -> str:
        return self.node.text

    def cast(self, target: pa.DataType, *, is_rounded: bool = False) -> pc.Expression:
        return self.expression if self.type == target else self.expression.cast(target, safe=not is_rounded)


@dataclass(frozen=True, slots=True)
class _Exact:
    """The whole numbers of 10 to the power of minus `scale` that a number may be."""

    least: int
    most: int
    scale: int

    @property
    def digits(self) -> int:
        return max(len(str(abs(self.least))), len(str(abs(self.most))), self.scale)

    @property
    def is_int64(self) -> bool:
        return self.scale == 0 and self.least >= -(2**63) and self.most < 2**63

    def at(self, scale: int) -> _Exact:
        factor = 10 ** (scale - self.scale)
        return _Exact(self.least * factor, self.most * factor, scale)


def bind_filter(condition: Node, schema: pa.Schema) -> pc.Expression:
    """Make an expression of a filter.

    Parameters
    ----------
    condition
        What `parse_filter` returned.
    schema
        Of the dataset.

    Returns
    -------
    pyarrow.compute.Expression

    Raises
    ------
    FilterError
        A column is not there, or is of a type that does not fit; the message says what would.
    """
    try:
        return _condition(condition, ds.InMemoryDataset([], schema=schema))
    except RecursionError as error:
        raise FilterError("the filter is nested too deeply") from error


def _condition(node: Node, empty: ds.Dataset) -> pc.Expression:
    if isinstance(node, Constant):
        if isinstance(node.value, bool):
            return pc.scalar(node.value)
        raise FilterError(f"{node.text!r} is a constant, not a condition")
    found = _typed(node, empty)
    if pa.types.is_null(found.type):
        return _UNKNOWN
    if not pa.types.is_boolean(found.type):
        raise FilterError(f"{found.text!r} is {found.type}, not a condition")
    return found.expression


def _typed(node: Node, empty: ds.Dataset) -> _Typed:
    if isinstance(node, Column):
        return _column(node, empty)
    if isinstance(node, Arithmetic):
        return _calculate(node.operator, *_operands(node, empty), node)
    return _Typed(_CONDITIONS[type(node)](node, empty), pa.bool_(), node)


def _column(node: Column, empty: ds.Dataset) -> _Typed:
    expression = pc.field(*node.path)
    try:
        scanner = empty.scanner(columns={"it": expression})
    except (ValueError, KeyError, TypeError) as error:
        if node.path[0] in empty.schema.names:
            raise FilterError(str(error)) from error
        there = ", ".join(empty.schema.names)
        raise FilterError(f"no column {node.path[0]!r}; there are {there}") from error
    found = _Typed(expression, scanner.projected_schema.field(0).type, node)
    target = _comparable(found.type)
    return _Typed(found.cast(target), target, node)


def _comparable(type_: pa.DataType) -> pa.DataType:
    return next((target(type_) for is_it, target in _COMPARABLE if is_it(type_)), type_)


def _operands(
    node: Arithmetic | Comparison, empty: ds.Dataset
) -> tuple[_Typed | Constant, _Typed | Constant]:
    left, right = (
        side if isinstance(side, Constant) else _typed(side, empty) for side in (node.left, node.right)
    )
    return left, right


# --- comparisons ---------------------------------------------------------------------------------


def _logic(node: Logic, empty: ds.Dataset) -> pc.Expression:
    return reduce(_OPERATORS[node.operator], [_condition(part, empty) for part in node.conditions])


def _opposite(node: Opposite, empty: ds.Dataset) -> pc.Expression:
    return ~_condition(node.condition, empty)


def _missing(node: Missing, empty: ds.Dataset) -> pc.Expression:
    return _typed(node.operand, empty).expression.is_null()


def _membership(node: Membership, empty: ds.Dataset) -> pc.Expression:
    operand = _typed(node.operand, empty)
    for value in node.values:
        _check(operand, _kind_of(value), value.text)
    if pa.types.is_null(operand.type):
        return _UNKNOWN
    below = [_below(value.value, operand.type) for value in node.values]
    values: list[Any] = [value for value, is_exact in below if is_exact]
    if pa.types.is_floating(operand.type) and any(value.as_py() == 0 for value in values):
        values.append(pa.scalar(-0.0, operand.type))  # to Arrow's tables another one than 0.0
    # As with !=, what is not there is neither in nor out: to Arrow it is not in, so its opposite is.
    return operand.expression.isin(pa.array(values, operand.type)) | _nowhere(operand)


def _comparison(node: Comparison, empty: ds.Dataset) -> pc.Expression:
    left, right = _operands(node, empty)
    if isinstance(right, Constant):
        return _against(cast("_Typed", left), node.operator, right)
    if isinstance(left, Constant):
        return _against(right, _MIRRORED[node.operator], left)
    _check(left, _kind(right.type), right.text)
    if pa.types.is_null(left.type) or pa.types.is_null(right.type):
        return _UNKNOWN
    if left.type != right.type:
        left, right = _ALIKE[_kind(left.type)](left, right)
    return _OPERATORS[node.operator](left.expression, right.expression)


def _against(column: _Typed, symbol: str, constant: Constant) -> pc.Expression:
    _check(column, _kind_of(constant), constant.text)
    if pa.types.is_null(column.type):
        return _UNKNOWN
    below, is_exact = _below(constant.value, column.type)
    if not is_exact:
        if symbol in ("==", "!="):
            return _nowhere(column) if symbol == "==" else ~_nowhere(column)
        is_less = symbol in ("<", "<=")
        if below is None:  # the least value of the type is more
            return _nowhere(column) if is_less else ~_nowhere(column)
        symbol = "<=" if is_less else ">"
    found: pc.Expression = _OPERATORS[symbol](column.expression, pc.scalar(below))
    if not pa.types.is_floating(column.type) or symbol in ("==", "!="):
        return found
    # Statistics leave NaN out: a row group where all else is less has rows for the opposite, too.
    return found & (column.expression == column.expression)


def _nowhere(column: _Typed) -> pc.Expression:
    """Return a condition that no value fulfils; of what is not there it is not known."""
    return column.expression.is_null() & _UNKNOWN


def _check(column: _Typed, kind: str | None, text: str) -> None:
    own = _kind(column.type)
    if own is None or ("null" not in (own, kind) and kind != own):
        raise FilterError(
            f"{column.text!r} is {column.type} and compares with {_WRITTEN[own]}, not with {text!r}"
        )


def _kind(type_: pa.DataType) -> str | None:
    return next(kind for is_it, kind in _KINDS if is_it(type_))


def _kind_of(constant: Constant) -> str:
    value = constant.value
    return value.kind if isinstance(value, Moment) else _KINDS_OF_VALUES[type(value)]


# --- values of a type ----------------------------------------------------------------------------


def _below(value: Any, type_: pa.DataType) -> tuple[pa.Scalar | None, bool]:
    """Return the greatest value of a type that is not above `value`, if any, and whether it is `value`."""
    if isinstance(value, bool):
        return pa.scalar(value, type_), True
    if isinstance(value, str):
        return pa.scalar(value.encode() if _is_binary(type_) else value, type_), True
    if pa.types.is_floating(type_):
        return _float_below(value, type_)
    step, least, most = _steps(type_)
    steps = Fraction(value.nanoseconds if isinstance(value, Moment) else value) / step
    whole = min(floor(steps), most)
    return (None, False) if whole < least else (_of_steps(whole, type_), whole == steps)


def _float_below(value: Number, type_: pa.DataType) -> tuple[pa.Scalar, bool]:
    kind = np.float32 if pa.types.is_float32(type_) else np.float64
    with np.errstate(over="ignore"):
        nearest = kind(_float(value))
    if isinf(nearest):
        below, is_exact = (np.finfo(kind).max if value > 0 else nearest), False
    else:
        is_exact = isinstance(value, Fraction) or int(nearest) == value
        below = np.nextafter(nearest, kind(-inf)) if not is_exact and int(nearest) > value else nearest
    return pa.scalar(float(below), type_), is_exact


def _float(value: Number) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


def _steps(type_: pa.DataType) -> tuple[Fraction, int, int]:
    """Return what the values of a type are multiples of (in nanoseconds), the least one and the most."""
    if pa.types.is_decimal(type_):
        most = 10**type_.precision - 1
        return Fraction(10) ** -type_.scale, -most, most
    if pa.types.is_unsigned_integer(type_):
        return Fraction(1), 0, 2**type_.bit_width - 1
    most = 2 ** (type_.bit_width - 1) - 1
    return Fraction(1 if pa.types.is_integer(type_) else _unit_ns(type_)), -most - 1, most


def _unit_ns(type_: pa.DataType) -> int:
    if pa.types.is_date(type_):
        return _NS_PER_DAY if pa.types.is_date32(type_) else _NS["ms"]
    return _NS[type_.unit]


def _of_steps(steps: int, type_: pa.DataType) -> pa.Scalar:
    if pa.types.is_decimal(type_):
        return pa.scalar(Decimal(f"{steps}E{-type_.scale}"), type_)
    if pa.types.is_integer(type_):
        return pa.scalar(steps, type_)
    return pa.scalar(steps, _integer_of(type_)).cast(type_)


def _integer_of(type_: pa.DataType) -> pa.DataType:
    return pa.int32() if type_.bit_width == 32 else pa.int64()  # noqa: PLR2004


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


# --- two columns of one type ---------------------------------------------------------------------


def _alike_texts(left: _Typed, right: _Typed) -> tuple[_Typed, _Typed]:
    is_binary = _is_binary(left.type) or _is_binary(right.type)
    target = pa.large_binary() if is_binary else pa.large_string()
    return _both(left, right, target)


def _alike_moments(left: _Typed, right: _Typed) -> tuple[_Typed, _Typed]:
    units = _unit_ns(left.type), _unit_ns(right.type)
    sides = (
        _multiplied(_Typed(side.cast(kind), kind, side.node), unit // min(units))
        for side, kind, unit in zip(
            (left, right), (_integer_of(left.type), _integer_of(right.type)), units, strict=True
        )
    )
    return _alike_numbers(*sides)


def _alike_numbers(left: _Typed, right: _Typed) -> tuple[_Typed, _Typed]:
    if pa.types.is_floating(left.type) or pa.types.is_floating(right.type):
        for side, other in ((left, right), (right, left)):
            if not _is_float_exactly(side.type):
                raise FilterError(
                    f"{side.text!r} is {side.type} and {other.text!r} {other.type}: no type compares them "
                    f"exactly; as floats it is '({side.text}) / 1'"
                )
        return _both(left, right, pa.float64())
    exact = _exact(left), _exact(right)
    scale = max(side.scale for side in exact)
    ends = [side.at(scale) for side in exact]
    both = _Exact(min(side.least for side in ends), max(side.most for side in ends), scale)
    return _both(left, right, pa.int64() if both.is_int64 else _decimal(both.digits, scale, left.node))


def _both(left: _Typed, right: _Typed, target: pa.DataType) -> tuple[_Typed, _Typed]:
    one, other = (_Typed(side.cast(target), target, side.node) for side in (left, right))
    return one, other


def _is_float_exactly(type_: pa.DataType) -> bool:
    is_short = type_.bit_width <= _EXACT_IN_FLOAT_BITS
    return bool(pa.types.is_floating(type_) or (pa.types.is_integer(type_) and is_short))


_ALIKE: dict[str | None, Callable[[_Typed, _Typed], tuple[_Typed, _Typed]]] = {
    "number": _alike_numbers,
    "text": _alike_texts,
    "moment": _alike_moments,
    "zoned": _alike_moments,
    "time": _alike_moments,
}


# --- arithmetic ----------------------------------------------------------------------------------


def _calculate(symbol: str, left: _Typed | Constant, right: _Typed | Constant, node: Node) -> _Typed:
    sides = (left, right)
    for side in sides:
        if isinstance(side, _Typed) and _kind(side.type) not in ("number", "null"):
            raise FilterError(f"{side.text!r} is {side.type}, no number to calculate with")
    if any(isinstance(side, _Typed) and pa.types.is_null(side.type) for side in sides):
        return _Typed(pc.scalar(None), pa.null(), node)
    if symbol == "/" or any(map(_is_rounded, sides)):
        floats = (_as_float(side) for side in sides)
        return _Typed(_OPERATORS[symbol](*floats), pa.float64(), node)
    return _calculate_exactly(symbol, left, right, node)


def _multiplied(number: _Typed, factor: int) -> _Typed:
    times = Constant(ast.Constant(factor), factor)
    return number if factor == 1 else _calculate_exactly("*", number, times, number.node)


def _calculate_exactly(symbol: str, left: _Typed | Constant, right: _Typed | Constant, node: Node) -> _Typed:
    one, other = _exact(left), _exact(right)
    if one.is_int64 and other.is_int64 and _result(symbol, one, other).is_int64:
        types = (pa.int64(),) * 3
    else:
        types = _decimals(symbol, one, other, node)
    sides = (
        side.cast(kind) if isinstance(side, _Typed) else pc.scalar(_below(side.value, kind)[0])
        for side, kind in zip((left, right), types, strict=False)
    )
    return _Typed(_OPERATORS[symbol](*sides), types[-1], node)


def _result(symbol: str, one: _Exact, other: _Exact) -> _Exact:
    apply = _OPERATORS[symbol]
    ends = [apply(a, b) for a in (one.least, one.most) for b in (other.least, other.most)]
    return _Exact(min(ends), max(ends), max(one.scale, other.scale))


def _decimals(symbol: str, one: _Exact, other: _Exact, node: Node) -> tuple[pa.DataType, ...]:
    """Return the types of both operands and of the result, by Arrow's rule for decimals.

    https://arrow.apache.org/docs/cpp/compute.html, "Arithmetic functions": (e1, s1) and (e2, s2).
    """
    if symbol == "*":
        digits, scale = one.digits + other.digits + 1, one.scale + other.scale
    else:
        scale = max(one.scale, other.scale)
        digits = max(one.digits - one.scale, other.digits - other.scale) + scale + 1
    result = _decimal(digits, scale, node)
    kind = pa.decimal128 if digits <= _MOST_DIGITS_128 else pa.decimal256
    return kind(one.digits, one.scale), kind(other.digits, other.scale), result


def _decimal(digits: int, scale: int, node: Node) -> pa.DataType:
    if digits > _MOST_DIGITS_256:
        raise FilterError(
            f"{node.text!r} may take {digits} digits, more than the {_MOST_DIGITS_256} of a decimal; "
            "what is divided by 1 is a float"
        )
    return (pa.decimal128 if digits <= _MOST_DIGITS_128 else pa.decimal256)(digits, scale)


def _exact(side: _Typed | Constant) -> _Exact:
    """Return what an integer, a decimal or a constant may be."""
    if isinstance(side, Constant):
        value = Fraction(cast("Number", side.value))
        scale = cast("int", _digits_behind_the_point(value))
        whole = int(value * 10**scale)
        return _Exact(whole, whole, scale)
    _, least, most = _steps(side.type)
    scale = side.type.scale if pa.types.is_decimal(side.type) else 0
    return _Exact(least, most, scale).at(max(scale, 0))


def _digits_behind_the_point(value: Number) -> int | None:
    """Return how many decimal digits `value` has behind the point; None: they do not end."""
    rest, counts = value.denominator, {2: 0, 5: 0}
    for prime in counts:
        while rest % prime == 0:
            rest //= prime
            counts[prime] += 1
    return max(counts.values()) if rest == 1 else None


def _is_rounded(side: _Typed | Constant) -> bool:
    if isinstance(side, Constant):
        return _digits_behind_the_point(cast("Number", side.value)) is None
    return bool(pa.types.is_floating(side.type))


def _as_float(side: _Typed | Constant) -> pc.Expression:
    if isinstance(side, Constant):
        return pc.scalar(_float(cast("Number", side.value)))
    if pa.types.is_decimal(side.type):
        # Arrow's own cast multiplies by a power of ten: 0.57 is not the float that is written so.
        return side.expression.cast(pa.string()).cast(pa.float64())
    return side.cast(pa.float64(), is_rounded=True)


_CONDITIONS: dict[type[Node], Callable[[Any, ds.Dataset], pc.Expression]] = {
    Logic: _logic,
    Opposite: _opposite,
    Missing: _missing,
    Membership: _membership,
    Comparison: _comparison,
}
