"""Filters of the command line: a small Python-like language, read into a tree of its few forms.

``l_quantity > 30 and l_shipmode in ('AIR', 'RAIL')`` is Python's own grammar, so `ast` parses it
and nothing is ever evaluated: each node is looked up in a whitelist and turned into one of the forms
below; any other node is refused by name. `_binding` makes a `pyarrow` expression of the tree, when
the columns' types are known.

Understood: column names (``a.b`` is a field of a struct, ``col("odd name")`` any name), numbers,
strings, ``True``, ``False``, ``None``; ``== != < <= > >=`` (chained too), ``in``, ``not in``,
``is None``, ``is not None``; ``and or not``; ``+ - * /`` and the sign; ``date("1994-01-01")``,
``time("12:00")`` and ``timestamp("1994-01-01T12:00")``, with an offset (``+00:00``) where the column
has a time zone. ``None`` in a list is left out: nothing is equal to it.

Names and numbers are taken from the text: Python's parser normalises the ones and rounds the others.
A number keeps every digit: an `int` where it was written as a whole number, else a `Fraction`.

Pure functions, any thread. No type is checked here but what needs no column.
"""

from __future__ import annotations

import ast
import datetime as dt
import operator
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_CHARS = 10_000
_NS_PER_US = 1_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_ONE_EQUALS = re.compile(r"(?<![=!<>:])=(?!=)")
_BELOW_MICROSECONDS = re.compile(r"[^.,+]*[.,]\d{6}(\d+)")
_LAST_NAME = re.compile(r"[^\s.]+$")

Number: TypeAlias = int | Fraction

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_FOLDED: dict[str, Callable[[Any, Any], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": Fraction,
}


class FilterError(ValueError):
    """The text is no filter, or none for these columns; the message names the part that is not."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point on a clock: since 1970 (in UTC, if it is `zoned`), or since midnight (`time`)."""

    kind: Literal["moment", "zoned", "time"]
    nanoseconds: Number


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a filter."""

    source: ast.expr

    @property
    def text(self) -> str:
        """The part as it could be written."""
        return ast.unparse(self.source)


@dataclass(frozen=True, slots=True)
class Column(Node):
    """A column, or with a longer path a field of a struct in it."""

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """A value; None only where a condition stands, which it is not."""

    value: bool | str | Number | Moment | None


@dataclass(frozen=True, slots=True)
class Arithmetic(Node):
    """One of ``+ - * /`` of two numbers, of which one at least is no constant."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Comparison(Node):
    """One of ``== != < <= > >=`` of two values, of which one at least is no constant."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Membership(Node):
    """Whether a value is one of some constants."""

    operand: Node
    values: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class Missing(Node):
    """Whether there is no value."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Logic(Node):
    """All (``and``) or any (``or``) of some conditions."""

    operator: Literal["and", "or"]
    conditions: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Opposite(Node):
    """The opposite of a condition."""

    condition: Node


def parse_filter(text: str) -> Node:
    """Read a filter.

    Parameters
    ----------
    text
        At most 10,000 characters; see the module's description for the language.

    Returns
    -------
    Node

    Raises
    ------
    FilterError
        The text is no expression of that language; the message names the part that is not.
    """
    if len(text) > _MAX_CHARS:
        raise FilterError(f"the filter has {len(text)} characters, more than {_MAX_CHARS}")
    try:
        found = _Reader(text.strip()).read()
    except SyntaxError as error:
        hint = "; equality is ==" if _ONE_EQUALS.search(text) else ""
        raise FilterError(f"{error.msg} in {text[:80]!r}{hint}") from error
    except (MemoryError, RecursionError) as error:
        raise FilterError("the filter is nested too deeply") from error
    if isinstance(found, Constant):
        raise FilterError(f"{text!r} is a constant, not a condition")
    return found


class _Reader:
    """Turns the nodes of Python's grammar into ours."""

    def __init__(self, text: str) -> None:
        self._tree = ast.parse(text, mode="eval").body
        # As Python counts them: lines end by these only, and columns are bytes.
        self._lines = re.split(rb"\r\n|\r|\n", text.encode())

    def read(self) -> Node:
        return self._node(self._tree)

    def _node(self, node: ast.expr) -> Node:
        handler = self._HANDLERS.get(type(node))
        if handler is None:
            raise FilterError(f"{ast.unparse(node)!r} is not something a filter may contain")
        return handler(self, node)

    def _written(self, node: ast.expr) -> str:
        """Return the last line of what was written for `node`: all of it where that is one word."""
        begin = node.col_offset if node.lineno == node.end_lineno else 0
        return self._lines[(node.end_lineno or 1) - 1][begin : node.end_col_offset].decode()

    def _name(self, node: ast.Name) -> Node:
        return Column(node, (self._written(node),))

    def _attribute(self, node: ast.Attribute) -> Node:
        inner, last = self._node(node.value), _LAST_NAME.search(self._written(node))
        if not isinstance(inner, Column) or last is None:
            raise FilterError(f"{ast.unparse(node)!r} is not the name of a column")
        return Column(node, (*inner.path, last[0]))

    def _constant(self, node: ast.Constant) -> Node:
        value = node.value
        if isinstance(value, float):
            return Constant(node, _fraction(self._written(node)))
        if isinstance(value, bytes | complex) or value is ...:
            raise FilterError(f"{ast.unparse(node)!r} is no number, string, True, False or None")
        return Constant(node, value)

    def _bool_op(self, node: ast.BoolOp) -> Node:
        parts = tuple(self._node(value) for value in node.values)
        return Logic(node, "and" if isinstance(node.op, ast.And) else "or", parts)

    def _unary(self, node: ast.UnaryOp) -> Node:
        operand = self._node(node.operand)
        if isinstance(node.op, ast.Not):
            return Opposite(node, operand)
        if isinstance(node.op, ast.USub):
            return _calculated(node, "-", Constant(ast.Constant(0), 0), operand)
        raise FilterError(f"the operator of {ast.unparse(node)!r} is not understood")

    def _binary(self, node: ast.BinOp) -> Node:
        symbol = _ARITHMETIC.get(type(node.op))
        if symbol is None:
            raise FilterError(f"the operator of {ast.unparse(node)!r} is not understood")
        return _calculated(node, symbol, self._node(node.left), self._node(node.right))

    def _compare(self, node: ast.Compare) -> Node:
        operands = [node.left, *node.comparators]
        steps = zip(operands, node.ops, operands[1:], strict=False)
        conditions = tuple(self._step(node, *step) for step in steps)
        return conditions[0] if len(conditions) == 1 else Logic(node, "and", conditions)

    def _step(self, node: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Node:
        operand = self._node(left)
        if isinstance(op, ast.In | ast.NotIn):
            found: Node = Membership(node, _no_constant(operand), self._values(right))
            return found if isinstance(op, ast.In) else Opposite(node, found)
        if isinstance(op, ast.Is | ast.IsNot):
            if not _is_none(right):
                raise FilterError(f"'is' compares with None only, not with {ast.unparse(right)!r}")
            found = Missing(node, _no_constant(operand))
            return found if isinstance(op, ast.Is) else Opposite(node, found)
        if _is_none(left) or _is_none(right):
            raise FilterError("compare with None by 'is None' or 'is not None'")
        other = self._node(right)
        if isinstance(operand, Constant):
            _no_constant(other)
        return Comparison(node, _COMPARISONS[type(op)], operand, other)

    def _values(self, node: ast.expr) -> tuple[Constant, ...]:
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            values = [self._node(value) for value in node.elts if not _is_none(value)]
            constants = tuple(value for value in values if isinstance(value, Constant))
            if len(constants) == len(values):
                return constants
        hint = f"; of one it is [{ast.unparse(node)}]" if isinstance(node, ast.Constant) else ""
        raise FilterError(f"'in' needs a list of constants, not {ast.unparse(node)!r}{hint}")

    def _call(self, node: ast.Call) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        text = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
        if name not in _CALLS or node.keywords or not isinstance(text, str):
            known = ", ".join(f'{known}("...")' for known in _CALLS)
            raise FilterError(f"{ast.unparse(node)!r} is not one of {known}")
        try:
            return _CALLS[name](node, text)
        except ValueError as error:
            raise FilterError(f"{ast.unparse(node)!r}: {error}") from error

    _HANDLERS: ClassVar[dict[type[ast.expr], Callable[[_Reader, Any], Node]]] = {
        ast.Name: _name,
        ast.Attribute: _attribute,
        ast.Constant: _constant,
        ast.BoolOp: _bool_op,
        ast.UnaryOp: _unary,
        ast.BinOp: _binary,
        ast.Compare: _compare,
        ast.Call: _call,
    }


def _fraction(text: str) -> Fraction:
    exact, rounded = Decimal(text.replace("_", "")), float(text)
    if abs(rounded) == float("inf") or (rounded == 0 and exact != 0):
        raise FilterError(f"{text} is beyond the range of a 64-bit float")
    return Fraction(exact)


def _is_number(node: Node) -> bool:
    return isinstance(node, Constant) and type(node.value) in (int, Fraction)


def _calculated(node: ast.expr, symbol: str, left: Node, right: Node) -> Node:
    for operand in (left, right):
        if not isinstance(operand, Column | Arithmetic) and not _is_number(operand):
            raise FilterError(f"{operand.text!r} is no number to calculate with")
    if symbol == "/" and isinstance(right, Constant) and right.value == 0:
        raise FilterError(f"{ast.unparse(node)!r} divides by 0")
    if isinstance(left, Constant) and isinstance(right, Constant):
        return Constant(node, _FOLDED[symbol](left.value, right.value))
    return Arithmetic(node, symbol, left, right)


def _no_constant(node: Node) -> Node:
    if isinstance(node, Constant):
        raise FilterError(f"{node.text!r} is compared with constants only")
    return node


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _date(node: ast.expr, text: str) -> Node:
    day = dt.datetime.combine(dt.date.fromisoformat(text), dt.time(), dt.UTC)
    return Constant(node, Moment("moment", _nanoseconds(day - _EPOCH, "")))


def _timestamp(node: ast.expr, text: str) -> Node:
    at = dt.datetime.fromisoformat(text)
    kind: Literal["moment", "zoned"] = "moment" if at.tzinfo is None else "zoned"
    since = (at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at) - _EPOCH
    return Constant(node, Moment(kind, _nanoseconds(since, text)))


def _time(node: ast.expr, text: str) -> Node:
    at = dt.time.fromisoformat(text)
    if at.tzinfo is not None:
        raise FilterError(f"{text!r}: a time of day has no offset")
    since = dt.datetime.combine(_EPOCH.date(), at, dt.UTC) - _EPOCH
    return Constant(node, Moment("time", _nanoseconds(since, text)))


def _nanoseconds(since: dt.timedelta, text: str) -> Number:
    """Return a time in nanoseconds, with the digits that `datetime` drops from its text."""
    below = _BELOW_MICROSECONDS.match(text)
    more = Fraction(int(below[1]), 10 ** len(below[1])) if below else 0
    return (since // dt.timedelta(microseconds=1) + more) * _NS_PER_US


_CALLS: dict[str, Callable[[ast.expr, str], Node]] = {
    "col": lambda node, name: Column(node, (name,)),
    "date": _date,
    "time": _time,
    "timestamp": _timestamp,
}
