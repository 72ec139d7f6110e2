"""Every `with` and `finally` of ours is left by a signal handler's exception, too.

From Python 3.12 on a conditional jump back to the start of a loop (the end of a ``while``, a comprehension's
``if``) stands in no exception table. Python looks for signals there, so what a handler raises goes past the
``with`` or ``finally`` around the loop: a lock stays held. In a function of its own such a loop does no harm,
since the call of that is in the table. Coroutines are left out, and asynchronous generators: no signal is
handled in those.
"""

from __future__ import annotations

import dis
import inspect
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = [path for name in ("plugin", "backends", "integrations") for path in (ROOT / name).rglob("*.py")]

UNSAFE = """
def wait(lock, is_over):
    with lock:
        while not is_over():
            pass
"""


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def passed_by(code: CodeType) -> set[int]:
    """Return the lines with a jump back into a `with` or `try` that is not in the table itself."""
    table: list[Any] = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    instructions = {found.offset: found for found in dis.get_instructions(code)}

    def handlers(offset: int) -> list[str]:
        return [instructions[row.target].opname for row in table if row.start <= offset < row.end]

    def is_guarded(offset: int) -> bool:
        """Whether that is in a `with` or `try`; a comprehension or generator has handlers of its own."""
        rows = [row for row in table if row.start <= offset < row.end]
        return any(
            instructions[row.target].opname == "PUSH_EXC_INFO" or "PUSH_EXC_INFO" in handlers(row.target)
            for row in rows
        )

    lines = set()
    for offset, found in instructions.items():
        is_jump = "JUMP_BACKWARD" in found.opname and "NO_INTERRUPT" not in found.opname
        if is_jump and not handlers(offset) and is_guarded(found.argval):
            assert found.positions is not None
            lines.add(found.positions.lineno or 0)
    return lines


def test_no_loop_lets_an_exception_past_what_is_around_it() -> None:
    (unsafe,) = [code for code in codes(compile(UNSAFE, "unsafe", "exec")) if code.co_name == "wait"]
    if not passed_by(unsafe):
        pytest.skip("this Python has every jump in its tables")
    found = [
        f"{path.relative_to(ROOT)}:{line} in {code.co_qualname}"
        for path in SOURCES
        for code in codes(compile(path.read_text(), str(path), "exec"))
        if not code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
        for line in passed_by(code)
    ]
    assert found == []
