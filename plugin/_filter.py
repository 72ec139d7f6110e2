"""Filters of the command line: a small Python-like language, read into a `pyarrow` expression.

``l_quantity > 30 and l_shipmode in ('AIR', 'RAIL')`` is Python's own grammar, so `ast` parses it
and nothing is ever evaluated: each node is looked up in a whitelist and turned into the matching
`pyarrow.compute.Expression`; any other node is refused by name.

Understood: column names (``a.b`` is a field of a struct, ``col("odd name")`` any name), numbers,
strings, ``True``, ``False``, ``None``; ``== != < <= > >=`` (chained too), ``in``, ``not in``,
``is None``, ``is not None``; ``and or not``; ``+ - * /`` and the sign; ``date("1994-01-01")`` and
``timestamp("1994-01-01T12:00")``, with an offset (``+00:00``) where the column has a time zone. As in
Python ``/`` drops no remainder. As in SQL a null passes no comparison, and neither ``in`` nor
``not in``, nor what is the opposite of any of these. ``None`` in a list is left out: nothing is equal to it.

Pure functions, any thread. No type is checked here: Arrow does that when it binds the expression to
a dataset's schema.
"""

from __future__ import annotations

import ast
import datetime as dt
import operator
import re
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_CHARS = 10_000
_ONE_EQUALS = re.compile(r"(?<![=!<>:])=(?!=)")

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_CALLS: dict[str, Callable[[str], Any]] = {
    "col": pc.field,
    "date": lambda text: pc.scalar(dt.date.fromisoformat(text)),
    "timestamp": lambda text: pc.scalar(dt.datetime.fromisoformat(text)),
}


class FilterError(ValueError):
    """The text is no filter; the message names the part that is not."""


def parse_filter(text: str) -> pc.Expression:
    """Read a filter.

    Parameters
    ----------
    text
        At most 10,000 characters; see the module's description for the language.

    Returns
    -------
    pyarrow.compute.Expression

    Raises
    ------
    FilterError
        The text is no expression of that language; the message names the part that is not.
    """
    if len(text) > _MAX_CHARS:
        raise FilterError(f"the filter has {len(text)} characters, more than {_MAX_CHARS}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        found = _expression(tree.body)
    except SyntaxError as error:
        hint = "; equality is ==" if _ONE_EQUALS.search(text) else ""
        raise FilterError(f"{error.msg} in {text[:80]!r}{hint}") from error
    except (MemoryError, RecursionError) as error:
        raise FilterError("the filter is nested too deeply") from error
    if isinstance(tree.body, ast.Constant):
        raise FilterError(f"{text!r} is a constant, not a condition")
    return found


def _expression(node: ast.expr) -> pc.Expression:
    handler = _HANDLERS.get(type(node))
    if handler is None:
        raise FilterError(f"{ast.unparse(node)!r} is not something a filter may contain")
    return handler(node)


def _name(node: ast.Name) -> pc.Expression:
    return pc.field(node.id)


def _attribute(node: ast.Attribute) -> pc.Expression:
    path = [node.attr]
    inner = node.value
    while isinstance(inner, ast.Attribute):
        path.append(inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name):
        raise FilterError(f"{ast.unparse(node)!r} is not the name of a column")
    return pc.field(inner.id, *reversed(path))


def _constant(node: ast.Constant) -> pc.Expression:
    if isinstance(node.value, bytes | complex) or node.value is ...:
        raise FilterError(f"{ast.unparse(node)!r} is no number, string, True, False or None")
    return _scalar(node.value)


def _scalar(value: object) -> pc.Expression:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FilterError(f"{value} needs more than 64 bits")
    return pc.scalar(value)


def _bool_op(node: ast.BoolOp) -> pc.Expression:
    combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
    return reduce(combine, [_expression(value) for value in node.values])


def _unary(node: ast.UnaryOp) -> pc.Expression:
    if isinstance(node.op, ast.Not):
        return ~_expression(node.operand)
    if isinstance(node.op, ast.USub):
        literal = _number(node)
        # A literal, not a call, so that Parquet statistics can prune with it.
        return pc.negate(_expression(node.operand)) if literal is None else _scalar(literal)
    raise FilterError(f"the operator of {ast.unparse(node)!r} is not understood")


def _number(node: ast.expr) -> int | float | None:
    """Return the number that `node` is, with its sign, or None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    constant: object = node.value if isinstance(node, ast.Constant) else None
    return constant if isinstance(constant, int | float) and not isinstance(constant, bool) else None


def _operand(node: ast.expr) -> pc.Expression:
    """Return one side of a comparison, a whole number in the smallest type that holds it.

    Arrow compares an int64 with a decimal(15, 2) by a decimal of 21 digits, and refuses. In
    arithmetic the number stays an int64, lest the result wrap around.
    """
    value = _number(node)
    if not isinstance(value, int):
        return _expression(node)
    narrow = np.min_scalar_type(min(value, -value - 1))
    if narrow.kind == "O":
        raise FilterError(f"{value} needs more than 64 bits")
    return pc.scalar(pa.scalar(value, pa.from_numpy_dtype(narrow)))


def _binary(node: ast.BinOp) -> pc.Expression:
    apply = _BINARY.get(type(node.op))
    if apply is None:
        raise FilterError(f"the operator of {ast.unparse(node)!r} is not understood")
    left = _expression(node.left)
    # Arrow's own division of whole numbers drops the remainder.
    return apply(left.cast("float64") if isinstance(node.op, ast.Div) else left, _expression(node.right))


def _compare(node: ast.Compare) -> pc.Expression:
    operands = [node.left, *node.comparators]
    steps = zip(operands, node.ops, operands[1:], strict=False)
    return reduce(operator.and_, [_step(left, op, right) for left, op, right in steps])


def _step(left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
    if isinstance(op, ast.In | ast.NotIn):
        column, values = _expression(left), _literals(right)
        try:
            found = column.isin(values)
        except (ValueError, TypeError, OverflowError) as error:  # Arrow's, of what no one type holds
            raise FilterError(f"{ast.unparse(right)!r} is of no one type: {error}") from error
        # As with !=, what is not there is neither in nor out: to Arrow it is not in, so its opposite is.
        found |= column.is_null() & pc.scalar(pa.scalar(None, pa.bool_()))
        return found if isinstance(op, ast.In) else ~found
    if isinstance(op, ast.Is | ast.IsNot):
        return _is_none(left, op, right)
    if _is_none_literal(left) or _is_none_literal(right):
        raise FilterError("compare with None by 'is None' or 'is not None'")
    return _COMPARISONS[type(op)](_operand(left), _operand(right))


def _is_none_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_none(left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
    if not _is_none_literal(right):
        raise FilterError(f"'is' compares with None only, not with {ast.unparse(right)!r}")
    column = _expression(left)
    return column.is_null() if isinstance(op, ast.Is) else column.is_valid()


def _literals(node: ast.expr) -> list[Any]:
    try:
        values = ast.literal_eval(node)
    except (ValueError, TypeError):
        values = None
    if not isinstance(values, tuple | list | set):
        hint = f"; of one it is [{ast.unparse(node)}]" if isinstance(node, ast.Constant) else ""
        raise FilterError(f"'in' needs a list of constants, not {ast.unparse(node)!r}{hint}")
    return [value for value in values if value is not None]  # which nothing is equal to


def _call(node: ast.Call) -> pc.Expression:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    text = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
    if name not in _CALLS or node.keywords or not isinstance(text, str):
        known = ", ".join(f'{known}("...")' for known in _CALLS)
        raise FilterError(f"{ast.unparse(node)!r} is not one of {known}")
    try:
        return _CALLS[name](text)
    except ValueError as error:
        raise FilterError(f"{ast.unparse(node)!r}: {error}") from error


_HANDLERS: dict[type[ast.expr], Callable[[Any], pc.Expression]] = {
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Constant: _constant,
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Call: _call,
}
