"""Filters of the command line over columns whose types are known: a tree becomes a `pyarrow` expression.

Arrow casts what stands beside each other to a type of its own choice, and loses digits, wraps around
or fails in the middle of a scan. So the casts are chosen here, and they are exact.

1. A constant beside a column takes the column's type, and the column stays as it is, so that Arrow
   can skip row groups by their statistics. Where the type does not have that value, the comparison is
   one with the next value below: ``x < 2.5`` of whole numbers is ``x <= 2``, ``x == 2.5`` holds nowhere.
2. Whole numbers and decimals are calculated and compared with each other as 64-bit integers where
   every result fits those, else as decimals of up to 76 digits; what may take more Arrow refuses.
3. Beside a float, and by ``/``, everything is calculated as a 64-bit float: the nearest one. Columns of
   floats compare with each other and with integers of at most 32 bits; what has no exact float is
   refused. A number beside floats is the nearest one of the column's width, an infinite one beyond it.
4. Dates and times of several units compare by whole numbers of the finer unit.

As in SQL a null passes no comparison, and neither ``in`` nor ``not in``, nor what is the opposite of
any of these. NaN is a value, and passes ``!=`` and opposites, but where Arrow does not know of it: it takes
a Parquet row group in which all other values of a column are one and the same for one of that value alone,
so any condition that only the NaN in it fulfils may select nothing there.

Pure functions, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial, reduce
from math import floor
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import types

from headrace._filter import OPERATORS, Column, Constant, FilterError, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace._filter import Node

_EXACT_IN_FLOAT_BITS, _INT64_BITS = 32, 64
_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_NS_PER_DAY = 86_400 * 10**9

_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

# What a type compares with, and how that is written.
_KINDS: dict[str, tuple[str, tuple[Callable[[pa.DataType], bool], ...]]] = {
    "number": ("numbers", (types.is_integer, types.is_float32, types.is_float64, types.is_decimal)),
    "text": (
        "strings, 'text'",
        (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary),
    ),
    "bool": ("True and False", (types.is_boolean,)),
    "moment": (
        'date("1994-01-01") and timestamp("1994-01-01T12:00")',
        (types.is_date, lambda type_: types.is_timestamp(type_) and type_.tz is None),
    ),
    "zoned": ('timestamp("1994-01-01T12:00+00:00"), with an offset', (types.is_timestamp,)),
    "time": ('time("12:00")', (types.is_time,)),
    "nothing": ("nothing but 'is None' and 'is not None'", (lambda _: True,)),
}


@dataclass(frozen=True, slots=True)
class _Typed:
    """What is computed for each row, and its type."""

    expression: pc.Expression
    type: pa.DataType
    text: str

    @property
    def kind(self) -> str:
        return next(kind for kind, (_, of) in _KINDS.items() if any(is_it(self.type) for is_it in of))

    def cast(self, target: pa.DataType, *, is_safe: bool = True) -> pc.Expression:
        return self.expression if self.type == target else self.expression.cast(target, safe=is_safe)


_Side: TypeAlias = _Typed | Constant


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
        if node.kind == "bool":
            return pc.scalar(node.value)
        raise FilterError(f"{node.text!r} is a constant, not a condition")
    found = _typed(node, empty)
    if types.is_null(found.type):
        return found.cast(pa.bool_())
    if not types.is_boolean(found.type):
        raise FilterError(f"{found.text!r} is {found.type}, not a condition")
    return found.expression


def _typed(node: Column | Operation, empty: ds.Dataset) -> _Typed:
    if isinstance(node, Column):
        return _column(node, empty.schema)
    if node.operator in ("and", "or", "not"):
        return _Typed(_logic(node, empty), pa.bool_(), node.text)
    sides = [side if isinstance(side, Constant) else _typed(side, empty) for side in node.operands]
    nulls = [side for side in sides if isinstance(side, _Typed) and types.is_null(side.type)]
    if node.operator != "is None" and nulls:
        return nulls[0]  # but it is read: it fails where there is something, as in another file
    return _operation(node, sides, empty)


def _logic(node: Operation, empty: ds.Dataset) -> pc.Expression:
    conditions = [_condition(operand, empty) for operand in node.operands]
    return ~conditions[0] if node.operator == "not" else reduce(OPERATORS[node.operator], conditions)


def _operation(node: Operation, sides: list[Any], empty: ds.Dataset) -> _Typed:
    if node.operator == "is None":
        return _Typed(sides[0].expression.is_null(), pa.bool_(), node.text)
    if node.operator == "in":
        return _Typed(_membership(*sides), pa.bool_(), node.text)
    if node.operator in _MIRRORED:
        return _Typed(_comparison(node, empty, *sides), pa.bool_(), node.text)
    for side in sides:
        if side.kind != "number":
            raise FilterError(f"{side.text!r} is {side.type}, no number to calculate with")
    return _calculated(node.text, node.operator, empty, *sides)


def _column(node: Column, schema: pa.Schema) -> _Typed:
    type_ = pa.struct(list(schema))
    for depth, name in enumerate(node.path):
        places = type_.get_all_field_indices(name) if types.is_struct(type_) else []
        if len(places) != 1:
            raise FilterError(_not_one(node.path[:depth], name, type_, len(places)))
        type_ = type_.field(places[0]).type
    found = _Typed(pc.field(*node.path), type_, node.text)
    target = _comparable(type_)
    return _Typed(found.cast(target), target, node.text)


def _not_one(path: tuple[str, ...], name: str, type_: pa.DataType, count: int) -> str:
    if count:
        return f"Multiple matches: {count} columns are named {name!r}"
    if path:
        return f"{'.'.join(path)!r} is {type_} and has no field {name!r}"
    return f"no column {name!r}; there are {', '.join(field.name for field in type_)}"


def _comparable(type_: pa.DataType) -> pa.DataType:
    """Return a type of the same values that Arrow can compare."""
    if types.is_dictionary(type_):
        return _comparable(type_.value_type)
    if types.is_fixed_size_binary(type_):
        return pa.binary()
    if types.is_decimal(type_) and type_.bit_width < 128:  # noqa: PLR2004
        return pa.decimal128(type_.precision, type_.scale)
    return {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(type_, type_)


# --- comparisons ---------------------------------------------------------------------------------


def _membership(column: _Typed, *constants: Constant) -> pc.Expression:
    for constant in constants:
        _check(column, constant)
    steps = [_at_most(constant.value, column.type) for constant in constants]
    values: list[Any] = [value for value, is_exact in steps if is_exact]
    if types.is_floating(column.type) and any(value.as_py() == 0 for value in values):
        values.append(pa.scalar(-0.0, column.type))  # to Arrow's tables another one than 0.0
    # As with !=, what is not there is neither in nor out: to Arrow it is not in, so its opposite is.
    return column.expression.isin(pa.array(values, column.type)) | _nowhere(column)


def _comparison(node: Operation, empty: ds.Dataset, left: Any, right: Any) -> pc.Expression:
    if isinstance(left, Constant):
        return _against(right, _MIRRORED[node.operator], left)
    if isinstance(right, Constant):
        return _against(left, node.operator, right)
    _check(left, right)
    if left.type == right.type or left.kind == "text":
        return OPERATORS[node.operator](left.expression, right.expression)
    if left.kind != "number":
        finer = min(_step(left.type), _step(right.type))
        left, right = _counted(left, finer, empty), _counted(right, finer, empty)
    elif types.is_floating(left.type) or types.is_floating(right.type):
        _check_float(left, right)
        _check_float(right, left)
    return _calculated(node.text, node.operator, empty, left, right).expression


def _against(column: _Typed, symbol: str, constant: Constant) -> pc.Expression:
    _check(column, constant)
    value, is_exact = _at_most(constant.value, column.type)
    if not is_exact and (value is None or symbol in ("==", "!=")):
        return ~_nowhere(column) if symbol in ("!=", ">", ">=") else _nowhere(column)
    if not is_exact:
        symbol = "<=" if symbol in ("<", "<=") else ">"
    found: pc.Expression = OPERATORS[symbol](column.expression, pc.scalar(value))
    if not types.is_floating(column.type) or symbol in ("==", "!="):
        return found
    # Statistics leave NaN out: a row group where all else is less has rows for the opposite, too.
    return found & (column.expression == column.expression)


def _nowhere(column: _Typed) -> pc.Expression:
    """Return a condition that no value fulfils; of what is not there it is not known."""
    return column.expression.is_null() & pc.scalar(pa.scalar(None, pa.bool_()))


def _check(column: _Typed, other: _Side) -> None:
    if column.kind == "nothing" or column.kind != other.kind:
        raise FilterError(
            f"{column.text!r} is {column.type} and compares with {_KINDS[column.kind][0]}, "
            f"not with {other.text!r}"
        )


def _check_float(side: _Typed, other: _Typed) -> None:
    is_short = types.is_integer(side.type) and side.type.bit_width <= _EXACT_IN_FLOAT_BITS
    if not (is_short or types.is_floating(side.type)):
        raise FilterError(
            f"{side.text!r} is {side.type} and {other.text!r} {other.type}: no type compares them "
            f"exactly; as floats it is '({side.text}) / 1'"
        )


# --- values of a type ----------------------------------------------------------------------------


def _at_most(value: Any, type_: pa.DataType) -> tuple[pa.Scalar | None, bool]:
    """Return the greatest value of a type that is not above `value`, if any, and whether it is `value`.

    Of floats it is the nearest one, and taken for `value`.
    """
    if isinstance(value, bool | str):
        return pa.scalar(value, type_), True
    if types.is_floating(type_):
        return pa.scalar(float(value), type_), True
    steps = value / _step(type_)
    least, most = _ends(type_)
    whole = min(floor(steps), most)
    return (None, False) if whole < least else (_of_steps(whole, type_), whole == steps)


def _step(type_: pa.DataType) -> Fraction:
    """Return what the values of a type are multiples of; those of a clock are counted in nanoseconds."""
    if types.is_decimal(type_):
        return Fraction(f"1e{-type_.scale}")
    if types.is_integer(type_):
        return Fraction(1)
    if types.is_date(type_):
        return Fraction(_NS_PER_DAY if types.is_date32(type_) else _NS["ms"])
    return Fraction(_NS[type_.unit])


def _ends(type_: pa.DataType) -> tuple[int, int]:
    """Return how many steps the least value of a type is, and the most."""
    if types.is_decimal(type_):
        return 1 - 10**type_.precision, 10**type_.precision - 1
    if types.is_unsigned_integer(type_):
        return 0, 2**type_.bit_width - 1
    return -(2 ** (type_.bit_width - 1)), 2 ** (type_.bit_width - 1) - 1


def _of_steps(steps: int, type_: pa.DataType) -> pa.Scalar:
    return pa.scalar(Decimal(f"{steps}E{-type_.scale}") if types.is_decimal(type_) else steps, type_)


# --- two numbers ---------------------------------------------------------------------------------


def _calculated(text: str, symbol: str, empty: ds.Dataset, left: _Side, right: _Side) -> _Typed:
    """Return what an operator makes of two numbers, of floats if one is or by ``/``, else of exact ones."""
    casts: list[Callable[[_Side], pc.Expression]]
    if symbol == "/" or _is_rounded(left) or _is_rounded(right):
        casts = [_as_float]
    elif _bits(symbol, left, right) <= _INT64_BITS:
        casts = [_as_int64]
    else:
        casts = [partial(_as_decimal, pa.decimal128), partial(_as_decimal, pa.decimal256)]
    for to_common in casts:
        try:
            found = OPERATORS[symbol](to_common(left), to_common(right))
            type_ = empty.scanner(columns={"it": found}).projected_schema.field(0).type
        except ValueError:  # Arrow's: what may come of it has more digits than the type
            continue
        return _Typed(found, type_, text)
    raise FilterError(
        f"{text!r} may take more than the 76 digits of a decimal; what is divided by 1 is a float"
    )


def _counted(side: _Typed, step: Fraction, empty: ds.Dataset) -> _Typed:
    """Return a time as the number of steps since 1970, or since midnight."""
    is_short = types.is_date32(side.type) or types.is_time32(side.type)
    type_, times = pa.int32() if is_short else pa.int64(), _step(side.type) / step
    whole = _Typed(side.cast(type_), type_, side.text)
    if times == 1:
        return whole
    return _calculated(side.text, "*", empty, whole, Constant(str(times), "number", times))


def _bits(symbol: str, left: _Side, right: _Side) -> int:
    """Return how many bits two whole numbers, and what an operator makes of them, may take."""
    one, other = _bits_of(left), _bits_of(right)
    return one + other if symbol == "*" else max(one, other) + (symbol in "+-")


def _bits_of(side: _Side) -> int:
    if isinstance(side, Constant) and side.value.denominator == 1:
        return int(side.value.numerator.bit_length()) + 1
    if isinstance(side, Constant) or not types.is_integer(side.type):
        return _INT64_BITS + 1  # or not whole
    return int(side.type.bit_width + types.is_unsigned_integer(side.type))


def _is_rounded(side: _Side) -> bool:
    if isinstance(side, Constant):
        return _digits_behind_the_point(side.value) is None
    return bool(types.is_floating(side.type))


def _digits_behind_the_point(value: Any) -> int | None:
    """Return how many decimal digits a number has behind the point; None: they do not end."""
    rest, counts = value.denominator, {2: 0, 5: 0}
    for prime in counts:
        while rest % prime == 0:
            rest //= prime
            counts[prime] += 1
    return max(counts.values()) if rest == 1 else None


def _as_float(side: _Side) -> pc.Expression:
    if isinstance(side, Constant):
        return pc.scalar(float(side.value))
    if types.is_decimal(side.type):
        # Arrow's own cast multiplies by a power of ten: 0.57 is not the float that is written so.
        return side.expression.cast(pa.string()).cast(pa.float64())
    return side.cast(pa.float64(), is_safe=False)


def _as_int64(side: _Side) -> pc.Expression:
    return pc.scalar(int(side.value)) if isinstance(side, Constant) else side.cast(pa.int64())


def _as_decimal(kind: Callable[[int, int], pa.DataType], side: _Side) -> pc.Expression:
    if isinstance(side, Constant):
        scale = _digits_behind_the_point(side.value) or 0
        return pc.scalar(Decimal(f"{int(side.value * 10**scale)}E-{scale}"))  # of as many digits
    if types.is_integer(side.type):
        return side.cast(kind(len(str(_ends(side.type)[1])), 0))
    scale = max(side.type.scale, 0)
    return side.cast(kind(side.type.precision + scale - side.type.scale, scale))
