"""Values of settings: what a constructor, the environment or Dask's configuration gives, and what it means.

A parser takes a raw value (text, or what YAML made of it) and returns the setting's. It raises ValueError,
TypeError, OverflowError or KeyError for what is not allowed; `headrace.settings` words the error.
"""

from __future__ import annotations

import math
import operator
from string import ascii_lowercase
from typing import TYPE_CHECKING, Final, SupportsFloat, SupportsIndex, cast

from headrace.core.hedge import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TRUTH: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("0", "false", "no", "off"), False
)
_MOST_HEDGED: Final = 0.5
_LEAST_INTERVAL_S: Final = 1e-5
_MAX_INT64: Final = 2**63 - 1
_LONGEST_S: Final = 365 * 86400.0  # what locks and clients take has an end, of centuries
# As Dask has them: importing it takes 0.2 s, and fails where one of its files is malformed.
_UNITS: Final = {"": 1, "b": 1} | {
    prefix + ending: step**power
    for power, prefix in enumerate("kmgtp", 1)
    for ending, step in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}


def choice(names: tuple[str, ...]) -> Callable[[object], str]:
    """Return a parser of one of some names, in lower case."""

    def parse(value: object) -> str:
        # YAML 1.1 reads a bare `off` as the truth value false, so `scheduler: off` arrives as it.
        text = "off" if value is False else value
        if not isinstance(text, str) or text.strip().lower() not in names:
            raise ValueError(value)
        return text.strip().lower()

    return parse


def flag(value: object) -> bool:
    """Return yes or no."""
    return _TRUTH[str(value).strip().lower()]


def _number(value: object) -> int:
    """Return `value` as an integer; 1e6, which Dask parses to a float, is one and 1.5 is not."""
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, str):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return operator.index(cast("SupportsIndex", value))


def count(minimum: int, maximum: int = 2**31 - 1) -> Callable[[object], int]:
    """Return a parser of whole numbers, the bounds included."""

    def parse(value: object) -> int:
        number = _number(value)
        if not minimum <= number <= maximum:
            raise ValueError(number)
        return number

    return parse


def size(minimum: int) -> Callable[[object], int]:
    """Return a parser of bytes, with a unit or without."""

    def parse(value: object) -> int:
        number = _size_of_text(value) if isinstance(value, str) else _number(value)
        if not minimum <= number <= _MAX_INT64:
            raise ValueError(number)
        return number

    return parse


def _size_of_text(text: str) -> int:
    text = "".join(text.split()).lower()
    if text.isdecimal():
        return int(text)
    # Dask reads a bare unit as one of it ("MB" is 1,000,000): here that is a forgotten number.
    number = text.rstrip(ascii_lowercase)
    found = int(float(number) * _UNITS[text.removeprefix(number)])
    # "0.1 B" must not round down to 0, which means "no limit".
    if found == 0 and any(char in "123456789" for char in number):
        raise ValueError(text)
    return found


def seconds(value: object) -> float:
    """Return a time above 0; a year stands for all that are longer."""
    if isinstance(value, bool):
        raise TypeError(value)
    seconds = float(cast("SupportsFloat | str", value))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(seconds)
    return min(seconds, _LONGEST_S)


def interval(value: object) -> float:
    """Return a switch interval of the interpreter's; 0 and its like are none."""
    if _TRUTH.get(str(value).strip().lower()) is False:
        return 0.0
    if isinstance(value, bool):
        raise TypeError(value)
    found = float(cast("SupportsFloat | str", value))
    if found and not _LEAST_INTERVAL_S <= found <= 1:
        raise ValueError(value)
    return found


def share(value: object) -> float:
    """Return a share; 1 and its like are the usual one."""
    text = str(value).strip().lower()
    if text in _TRUTH:
        return SHARE if _TRUTH[text] else 0.0
    share = float(text)
    if share == 1:
        return SHARE
    if not 0 <= share <= _MOST_HEDGED:
        raise ValueError(value)
    return share


def level(value: object) -> str:
    """Return a level of `logging`."""
    name = str(value).strip().upper()
    if name not in LEVELS:
        raise ValueError(value)
    return name
