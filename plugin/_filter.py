"""Filters of the command line: a small Python-like language, read into a tree of its few forms.

``l_quantity > 30 and l_shipmode in ('AIR', 'RAIL')`` is Python's own grammar, so `ast` parses it
and nothing is ever evaluated: each node is looked up in a whitelist and turned into a `Column`, a
`Constant` or an `Operation`; any other node is refused by name. `_binding` makes a `pyarrow` expression
of the tree, when the columns' types are known.

Understood: column names (``a.b`` is a field of a struct, ``col("odd name")`` any name), numbers,
strings, ``True``, ``False``, ``None``; ``== != < <= > >=`` (chained too), ``in``, ``not in``,
``is None``, ``is not None``; ``and or not``; ``+ - * /`` and the signs; ``date("1994-01-01")``,
``time("12:00")`` and ``timestamp("1994-01-01T12:00")``, with an offset (``+00:00``) where the column
has a time zone. ``None`` in a list is left out: nothing is equal to it.

Names and numbers are taken from the text: Python's parser normalises the ones and rounds the others.
A number is a `Fraction`: it keeps every digit.

Pure functions, any thread. No type is checked here but what needs no column.
"""

from __future__ import annotations

import ast
import datetime as dt
import keyword
import operator
import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_CHARS = 10_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_BELOW_MICROSECONDS = re.compile(r"[^.,+]*[.,]\d{6}(\d+)")
_NO_NAMES = sorted({*keyword.kwlist} - {"and", "or", "not", "in", "is", "None", "True", "False"})
_HINTS = (
    (re.compile(r"(?<![=!<>:])=(?!=)"), "equality is =="),
    (re.compile(r"\b(AND|OR|NOT)\b|&&|\|\|"), "conditions are joined by and, or, not"),
    (re.compile(rf"\b({'|'.join(_NO_NAMES)})\b"), 'a column of that name is col("{0}")'),
)

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
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
_NODES: tuple[type[ast.AST], ...] = (
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.And, ast.Or, ast.UAdd, ast.USub),
)
_SYMBOLS = dict(zip(_NODES, (*OPERATORS, "+", "-"), strict=True))
_ARITHMETIC = ("+", "-", "*", "/")


class FilterError(ValueError):
    """The text is no filter, or none for these columns; the message names the part that is not."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or with a longer path a field of a struct in it."""

    text: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """A value, and what it compares with.

    ``bool``; ``text`` (a `str`); ``number``; ``moment``, ``zoned``, ``time``: nanoseconds since 1970, since
    1970 in UTC, since midnight; ``nothing``: None, and only where a condition stands, which it is not.
    """

    text: str
    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operator makes of its operands.

    ``+ - * /``, ``== != < <= > >=``: two values, of which one at least is no constant; ``in``: one that
    is none and the constants of a list; ``is None``: one that is none; ``not``, ``and``, ``or``: conditions.
    """

    text: str
    operator: str
    operands: tuple[Node, ...]


Node: TypeAlias = Column | Constant | Operation


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
        found = _node(_tree(text.strip()))
    except (MemoryError, RecursionError) as error:
        raise FilterError("the filter is nested too deeply") from error
    if isinstance(found, Constant):
        raise FilterError(f"{text!r} is a constant, not a condition")
    return found


def _tree(text: str) -> ast.expr:
    """Return Python's tree of a text, with what was written for each node as its `text`."""
    try:
        written = text.encode()
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        hints = (hint.format(*found.groups()) for pattern, hint in _HINTS if (found := pattern.search(text)))
        raise FilterError("; ".join([f"{getattr(error, 'msg', error)} in {text[:80]!r}", *hints])) from error
    # As Python counts them: lines end by these only, and columns are bytes.
    lines = [0, *(end.end() for end in re.finditer(rb"\r\n|\r|\n", written))]
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            if not isinstance(node, _ALLOWED):
                raise FilterError(f"{ast.unparse(node)!r} is not something a filter may contain")
            begin = lines[node.lineno - 1] + node.col_offset
            end = lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            vars(node)["text"] = written[begin:end].decode()
    return tree


def _text(node: ast.AST) -> str:
    return str(vars(node)["text"])


def _node(node: ast.expr) -> Node:
    return _HANDLERS[type(node)](node)


def _attribute(node: ast.Attribute) -> Node:
    inner = _node(node.value)
    if not isinstance(inner, Column):
        raise FilterError(f"{_text(node)!r} is not the name of a column")
    return Column(_text(node), (*inner.path, re.split(r"[\s.]", _text(node))[-1]))


def _constant(node: ast.Constant) -> Node:
    text, value = _text(node), node.value
    if isinstance(value, bytes | complex) or value is ...:
        raise FilterError(f"{text!r} is no number, string, True, False or None")
    if type(value) in (int, float):
        return _number(text, Fraction(value) if isinstance(value, int) else text.replace("_", ""))
    return Constant(text, {bool: "bool", str: "text"}.get(type(value), "nothing"), value)


def _number(text: str, value: Fraction | str) -> Constant:
    with suppress(ArithmeticError):
        exact = Decimal(value) if isinstance(value, str) else value
        if isfinite(float(exact)) and (float(exact) == 0) == (exact == 0):
            return Constant(text, "number", Fraction(exact))  # only now: of 1e999999999 it has as many digits
    raise FilterError(f"{text[:80]} is beyond the range of a 64-bit float")


def _bool_op(node: ast.BoolOp) -> Node:
    return Operation(_text(node), _symbol(node), tuple(map(_node, node.values)))


def _unary(node: ast.UnaryOp) -> Node:
    operand = _node(node.operand)
    if isinstance(node.op, ast.Not):
        return Operation(_text(node), "not", (operand,))
    return _calculated(_text(node), _symbol(node), Constant("0", "number", Fraction(0)), operand)


def _binary(node: ast.BinOp) -> Node:
    return _calculated(_text(node), _symbol(node), _node(node.left), _node(node.right))


def _symbol(node: ast.BoolOp | ast.UnaryOp | ast.BinOp) -> str:
    symbol = _SYMBOLS.get(type(node.op))
    if symbol is None:
        raise FilterError(f"the operator of {_text(node)!r} is none of + - * / and or not")
    return symbol


def _calculated(text: str, symbol: str, left: Node, right: Node) -> Node:
    for operand in (left, right):
        is_number = operand.operator in _ARITHMETIC if isinstance(operand, Operation) else True
        if not is_number or (isinstance(operand, Constant) and operand.kind != "number"):
            raise FilterError(f"{operand.text!r} is no number to calculate with")
    if symbol == "/" and isinstance(right, Constant) and right.value == 0:
        raise FilterError(f"{text!r} divides by 0")
    if isinstance(left, Constant) and isinstance(right, Constant):
        return _number(text, OPERATORS[symbol](left.value, right.value))
    return Operation(text, symbol, (left, right))


def _compare(node: ast.Compare) -> Node:
    operands = [node.left, *node.comparators]
    steps = zip(operands, node.ops, operands[1:], strict=False)
    conditions = tuple(_step(_text(node), *step) for step in steps)
    return conditions[0] if len(conditions) == 1 else Operation(_text(node), "and", conditions)


def _step(text: str, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Node:
    if isinstance(op, ast.In | ast.NotIn):
        values = _values(right)
        found = Operation(text, "in", (_no_constant(left), *values))
    elif isinstance(op, ast.Is | ast.IsNot):
        if not _is_none(right):
            raise FilterError(f"'is' compares with None only, not with {_text(right)!r}")
        found = Operation(text, "is None", (_no_constant(left),))
    else:
        if _is_none(left) or _is_none(right):
            raise FilterError("compare with None by 'is None' or 'is not None'")
        operand = _node(left)
        other = _no_constant(right) if isinstance(operand, Constant) else _node(right)
        return Operation(text, _SYMBOLS[type(op)], (operand, other))
    return Operation(text, "not", (found,)) if isinstance(op, ast.NotIn | ast.IsNot) else found


def _no_constant(node: ast.expr) -> Node:
    found = _node(node)
    if isinstance(found, Constant):
        raise FilterError(f"{found.text!r} is compared with constants only")
    return found


def _values(node: ast.expr) -> list[Node]:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        values = [_node(value) for value in node.elts if not _is_none(value)]
        if all(isinstance(value, Constant) for value in values):
            return values
    hint = f"; of one it is [{_text(node)}]" if isinstance(node, ast.Constant) else ""
    raise FilterError(f"'in' needs a list of constants, not {_text(node)!r}{hint}")


def _list(node: ast.expr) -> Node:
    raise FilterError(f"{_text(node)!r} is not something a filter may contain but after 'in'")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _call(node: ast.Call) -> Node:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    argument = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
    if name not in (*_CLOCKS, "col") or node.keywords or not isinstance(argument, str):
        known = ", ".join(f'{known}("...")' for known in (*_CLOCKS, "col"))
        raise FilterError(f"{_text(node)!r} is not one of {known}")
    if name == "col":
        return Column(_text(node), (argument,))
    try:
        return _moment(_text(node), name, argument)
    except ValueError as error:
        raise FilterError(f"{_text(node)!r}: {error}") from error


def _moment(text: str, name: str, argument: str) -> Constant:
    at = _CLOCKS[name](argument)
    if name == "time" and at.tzinfo is not None:
        raise ValueError("a time of day has no offset")
    since = (at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at) - _EPOCH
    below = _BELOW_MICROSECONDS.match(argument)  # digits that `datetime` drops
    more = Fraction(f"0.{below[1]}") if below else Fraction(0)
    kind = "time" if name == "time" else "moment" if at.tzinfo is None else "zoned"
    return Constant(text, kind, (since // dt.timedelta(microseconds=1) + more) * 1_000)


_CLOCKS: dict[str, Callable[[str], dt.datetime]] = {
    "date": lambda text: dt.datetime.combine(dt.date.fromisoformat(text), dt.time()),
    "time": lambda text: dt.datetime.combine(_EPOCH, dt.time.fromisoformat(text)),
    "timestamp": dt.datetime.fromisoformat,
}

_HANDLERS: dict[type[ast.expr], Callable[[Any], Node]] = {
    ast.Name: lambda node: Column(_text(node), (_text(node),)),
    ast.Attribute: _attribute,
    ast.Constant: _constant,
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Call: _call,
    **dict.fromkeys((ast.List, ast.Tuple, ast.Set), _list),
}
_ALLOWED = tuple(_HANDLERS)
