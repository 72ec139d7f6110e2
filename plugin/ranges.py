"""What callers ask: arguments brought into columns, and fsspec's `cat_ranges` contract.

Plain ranges (offsets, not negative) go to the planner as columns. Odd bounds (None, negative) mean what the
wrapped filesystem makes of them, and each is a request of its own. What makes no sense (an end before the
start, a bound that is no offset, a path that is none) is an error of its own in `cat_ranges` (I10), and of
the whole call in `read_ranges`, whose ranges are all plain. An error that is an answer has no traceback
(`without_frames`).
"""

from __future__ import annotations

import io
import operator
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from headrace.batch import RangeBatch
from headrace.columns import first_bad, largest
from headrace.threads import raise_if_of_a_handler

if TYPE_CHECKING:
    from headrace.types import Int64Array, UInt8Array

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

AnyPath: TypeAlias = str | os.PathLike[str]
"""What fsspec takes for a path, where one file is named."""

Asking: TypeAlias = AnyPath | Sequence[AnyPath] | IO[bytes] | io.BufferedIOBase
"""What ranges are read of: one file, by path or open, or a path for each."""

Bounds = tuple[int | None, int | None]
"""Start and end, as fsspec understands them."""

Single = tuple[str, Bounds]
"""A range that is a request of its own: its file, and its bounds."""

MOST_OFFSET = 2**63 - 1
"""The largest offset in a file, as the system has it."""

MOST_OPEN = 256
"""Files of a call that are open at once, at the most."""


@dataclass(slots=True, eq=False)
class Ranges:
    """What a caller asked: n ranges of some files.

    Attributes
    ----------
    paths
        The distinct files.
    file, starts, ends
        ``int64[n]``.
    max_gap
        Coalesce over gaps of so many bytes; None: the channel's choice.
    errors
        Ranges whose file could not be opened.
    opened
        The one file, where the caller has it open: it stays open until they are read.
    source
        What that is read through, where it is headrace's.
    """

    paths: list[str]
    file: Int64Array
    starts: Int64Array
    ends: Int64Array
    max_gap: int | None = None
    errors: dict[int, Exception] = field(default_factory=dict)
    opened: Any = None
    source: Any = None

    def __len__(self) -> int:
        return len(self.starts)

    def of_files(self, first: int, most: int, rows: Int64Array) -> Ranges:
        """Return the ranges `rows`, which are all of the files from `first` on, `most` of these."""
        names = self.paths[first : first + most]
        return Ranges(names, self.file[rows] - first, self.starts[rows], self.ends[rows], self.max_gap)

    def clip(self, size: int) -> None:
        """Have no range go past the end of the one file; one that begins there is empty."""
        if len(self) and largest(self.ends) > size:  # with the GIL kept
            self.ends = np.maximum(self.starts, np.minimum(self.ends, size))

    def own(self) -> None:
        """Keep no array of the caller's, who may use it again before the result is taken."""
        self.starts, self.ends = self.starts.copy(), self.ends.copy()


def as_ranges(
    paths: AnyPath | Sequence[AnyPath], starts: Any, ends: Any, normalise: Any = lambda path: path
) -> Ranges:
    """Bring a caller's arguments into columns.

    Parameters
    ----------
    paths
        One path for all ranges, or one for each.
    starts, ends
        Integers, or one for all.

    Raises
    ------
    TypeError
        Not integers.
    ValueError
        Lengths differ, a start is negative, or an end is before its start.
    """
    first, last = _integers("starts", starts), _integers("ends", ends)
    if isinstance(paths, str | os.PathLike):
        n = max(first.size, last.size)
        names, file = [normalise(paths)], np.zeros(n, np.int64)
    else:
        number: dict[str, int] = {}
        rows = [number.setdefault(path, len(number)) for path in _listed_paths(paths)]
        n, file = len(rows), np.array(rows, np.int64)
        names = [_named(path, normalise) for path in number]
    try:
        first, last = _stretched(first, n), _stretched(last, n)
    except ValueError:
        msg = f"{n} paths, {first.size} starts and {last.size} ends do not go together"
        raise ValueError(msg) from None
    _check(first, last)
    return Ranges(names, file, first, last)


def _listed_paths(paths: Any) -> Iterable[Any]:
    """Return the paths of Arrow's, NumPy's or other sequences."""
    if hasattr(paths, "to_pylist"):
        return paths.to_pylist()  # type: ignore[no-any-return]
    if not isinstance(paths, Iterable):
        msg = f"paths are one, or a sequence of them; not {paths!r}"
        raise TypeError(msg)
    return paths


def _is_path(path: Any) -> bool:
    return isinstance(path, str | os.PathLike)


def _checked_path(path: Any) -> Any:
    if not _is_path(path):
        msg = f"a path is a string or os.PathLike, not {path!r}"
        raise TypeError(msg)
    return path


def _stretched(values: Int64Array, n: int) -> Int64Array:
    """Return `values` as they are, or one for all ``n`` times, without a copy."""
    return values if values.shape == (n,) else np.broadcast_to(values, n)


def _check(first: Int64Array, last: Int64Array) -> None:
    """Name the first range that makes no sense."""
    row = first_bad(first, last)
    if row is not None:
        start, end = int(first[row]), int(last[row])
        what = f"start {start} is negative" if start < 0 else f"end {end} is before start {start}"
        msg = f"range {row}: {what}"
        raise ValueError(msg)


def _integers(name: str, values: Any) -> Int64Array:
    values = _kept(values)
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64).reshape(-1)
    if array.dtype.kind == "O" or (array.dtype.kind == "f" and not isinstance(values, np.ndarray)):
        flat = np.asarray(values, object).ravel().tolist()  # no integers of NumPy's
        if all(isinstance(value, int) for value in flat):
            _check_offsets(name, flat)
    if array.dtype.kind not in "iu":
        msg = f"{name} must be integers, not {array.dtype}"
        raise TypeError(msg)
    if array.ndim > 1:
        msg = f"{name} must be of one dimension, not of shape {array.shape}"
        raise ValueError(msg)
    if array.dtype.kind == "u" and array.dtype.itemsize == np.dtype(np.int64).itemsize:
        _check_offsets(name, [int(array.max())])
    return array.astype(np.int64, copy=False)


def _check_offsets(name: str, values: Iterable[int]) -> None:
    """Raise ValueError where one is larger than offsets of files are."""
    for value in values:
        if value > MOST_OFFSET:
            msg = f"{name}: {value} is beyond the largest offset, {MOST_OFFSET}"
            raise ValueError(msg)


def as_bounds(bounds: tuple[Any, Any]) -> Bounds:
    """Return bounds as integers of Python's: narrow ones of NumPy's wrap around, or cannot be subtracted.

    Raises
    ------
    TypeError
        One is neither an integer nor None.
    """
    start, end = bounds
    return None if start is None else operator.index(start), None if end is None else operator.index(end)


def is_plain(start: Any, end: Any) -> bool:
    """Whether both bounds are offsets."""
    return start is not None and end is not None and start >= 0 and end >= 0


def resolve_bounds(bounds: Bounds, size: Callable[[], int | None]) -> tuple[int, int]:
    """Turn None and negative bounds into offsets, as slicing does; the size is asked for if it is needed.

    Raises
    ------
    ValueError
        Plain offsets, the end before the start; larger than offsets are.
    """
    start, end = bounds
    _check_offsets("start and end", [bound for bound in bounds if bound is not None])
    start = 0 if start is None else start
    if end is not None and is_plain(start, end):
        if end < start:
            msg = f"end {end} is before start {start}"
            raise ValueError(msg)
        return start, end
    length = size() or 0
    first = start if start >= 0 else max(length + start, 0)
    last = length if end is None else end if end >= 0 else max(length + end, 0)
    return first, max(first, last)


@dataclass(slots=True, eq=False)
class Asked:
    """A call of `cat_ranges`: its plain ranges as columns, and the odd ones.

    Attributes
    ----------
    paths
        Of each range, as given.
    bounds
        Starts and ends, as given.
    plain
        The plain ranges.
    rows
        Which of the caller's ranges those are, or None for all.
    """

    paths: list[str]
    bounds: tuple[Sequence[int | None], Sequence[int | None]]
    plain: Ranges
    rows: list[int] | None
    normalise: Callable[[str], str]

    @property
    def has_odd_bounds(self) -> bool:
        """Whether any range is not given by offsets, or ends before it starts."""
        return self.rows is not None

    def singles(self, *, are_all: bool = False) -> list[Single | Exception]:
        """Return the odd ranges, or all, to be read each by itself; or what is wrong with them."""
        rows = range(len(self.paths)) if are_all else self._odd_rows()
        return [answer_or_error(self._single, row) for row in rows]

    def answers(self, batch: RangeBatch | None, singles: list[Any], on_error: str) -> list[Any]:
        """Merge the plain answers with those of the odd ranges; without a batch all were read singly."""
        found = singles if batch is None else batch.to_pylist(on_error="return")
        if self.rows is not None and batch is not None:
            merged: list[Any] = [None] * len(self.paths)
            for row, answer in zip((*self.rows, *self._odd_rows()), (*found, *singles), strict=True):
                merged[row] = answer
            found = merged
        return found if on_error == "return" else raise_first(found)

    def _odd_rows(self) -> list[int]:
        return [] if self.rows is None else sorted(set(range(len(self.paths))) - set(self.rows))

    def _single(self, row: int) -> Single:
        path = _named(self.paths[row], self.normalise)
        bounds = as_bounds((self.bounds[0][row], self.bounds[1][row]))
        if is_plain(*bounds):
            resolve_bounds(bounds, lambda: None)  # which says what may be wrong with them
        return path, bounds

    def answers_in_blocks(self, most: int, read: Callable[..., list[Any]]) -> list[Any]:
        """Merge the answers to several calls, each of so many files at the most."""
        numbers: dict[Any, int] = {}
        blocks: dict[int, list[int]] = {}
        for row, path in enumerate(self.paths):
            key = path if _is_path(path) else None  # an odd one, which may be no key, opens nothing
            blocks.setdefault(numbers.setdefault(key, len(numbers)) // most, []).append(row)
        merged: list[Any] = [None] * len(self.paths)
        for rows in blocks.values():
            columns = ([column[row] for row in rows] for column in (self.paths, *self.bounds))
            for row, answer in zip(rows, read(*columns), strict=True):
                merged[row] = answer
        return merged


def answer_or_error(function: Callable[..., T], *args: Any) -> T | Exception:
    """Return what the function answers, or the exception it raises."""
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - it is the answer
        raise_if_of_a_handler(error)
        return error


def or_error(function: Callable[..., T], given: Any, *args: Any) -> T | Exception:
    """Call it for what is no exception already."""
    answer = given if isinstance(given, Exception) else answer_or_error(function, given, *args)
    return without_frames(answer) if isinstance(answer, Exception) else answer


def without_frames(error: E) -> E:
    """Take the tracebacks off an error that is returned and not raised; a note says where it was raised.

    Whoever keeps it would keep the frames that it came through and all that called them, and so the memory
    of the whole read; and a read that has its errors would have itself, until a collection. The error that
    was being handled meanwhile may be somebody else's: it keeps its own, and is no longer referred to.
    """
    places = list(traceback.walk_tb(error.__traceback__))
    if places:
        frame, line = places[-1]
        code = frame.f_code
        note = f"raised in {code.co_name}, {code.co_filename}:{line}"
        try:
            if note not in getattr(error, "__notes__", ()):  # of one that is raised again and again
                error.add_note(note)
        except Exception as problem:  # noqa: BLE001 - of a class whose instances take none
            raise_if_of_a_handler(problem)
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = link.__context__ = None
        link = link.__cause__
    return error


def raise_first(found: list[Any]) -> list[Any]:
    """Raise the first exception among answers, or return them."""
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    return found


def ask(paths: Any, starts: Any, ends: Any, normalise: Callable[[str], str], max_gap: int | None) -> Asked:
    """Bring the arguments of `cat_ranges` into shape.

    Raises
    ------
    TypeError
        `paths` is no list, or bounds are texts, dates or the like.
    ValueError
        Lengths differ.
    """
    if not isinstance(paths, list):
        msg = f"paths must be a list, not {type(paths).__name__}"
        raise TypeError(msg)
    firsts, lasts = _column(starts, len(paths)), _column(ends, len(paths))
    if len(firsts) != len(paths) or len(lasts) != len(paths):
        msg = f"{len(paths)} paths, {len(firsts)} starts and {len(lasts)} ends do not go together"
        raise ValueError(msg)
    first, last = np.asarray(firsts), np.asarray(lasts)
    for name, column in (("starts", first), ("ends", last)):
        if column.dtype.kind not in "biufO" or column.ndim > 1:
            msg = f"{name} must be integers or None, not {column.dtype} of shape {column.shape}"
            raise TypeError(msg)
    rows, plain = None, None
    if _are_offsets(first) and _are_offsets(last) and first_bad(first, last) is None:
        plain = answer_or_error(as_ranges, paths, first, last, normalise)
    if not isinstance(plain, Ranges):
        rows = _plain_rows(paths, firsts, lasts, normalise)
        named, begins, stops = ([column[k] for k in rows] for column in (paths, firsts, lasts))
        plain = as_ranges(named, [*map(operator.index, begins)], [*map(operator.index, stops)], normalise)
    plain.max_gap = max_gap
    return Asked(paths, (firsts, lasts), plain, rows, normalise)


def _are_offsets(column: Any) -> bool:
    """Whether they all are integers, and none is larger than offsets are."""
    if column.dtype.kind == "u":
        return not column.size or int(column.max()) <= MOST_OFFSET
    return column.dtype.kind == "i" or not column.size


def _plain_rows(paths: list[Any], firsts: Any, lasts: Any, normalise: Callable[[str], str]) -> list[int]:
    """Return which ranges are between offsets, and of a path that the filesystem can name."""
    rows = [
        k
        for k, path in enumerate(paths)
        if (type(path) is str or _is_path(path)) and _is_plain_range(firsts[k], lasts[k])
    ]
    distinct = {paths[k] for k in rows}
    bad = {path for path in distinct if isinstance(answer_or_error(normalise, path), Exception)}
    return [k for k in rows if paths[k] not in bad] if bad else rows


def _is_plain_range(start: Any, end: Any) -> bool:
    if not (type(start) is type(end) is int or (hasattr(start, "__index__") and hasattr(end, "__index__"))):
        return False
    is_range: bool = 0 <= start <= end <= MOST_OFFSET
    return is_range


def _named(path: Any, normalise: Callable[[str], str]) -> str:
    return normalise(_checked_path(path))


def _column(values: Any, n: int) -> Any:
    """Return one bound for each range: an integer or None stands for all."""
    return _kept(values) if isinstance(values, Iterable) else [values] * n


def _kept(values: Any) -> Any:
    """Return what can be looked at more than once, and by position: pandas looks by label."""
    if isinstance(values, Iterator):
        return list(values)
    return np.asarray(values) if hasattr(values, "__array__") else values


def check_bytes(name: str, given: Any) -> None:
    """Raise TypeError or ValueError for what is no number of bytes; None is the default."""
    if given is None:
        return
    if not hasattr(given, "__index__"):
        msg = f"{name} is a number of bytes, or None; not {given!r}"
        raise TypeError(msg)
    if given < 0:
        msg = f"{name} is not negative: {given}"
        raise ValueError(msg)


def listed(ranges: Ranges) -> tuple[list[str], list[int], list[int]]:
    """Return paths, starts and ends as other filesystems take them."""
    return [ranges.paths[k] for k in ranges.file.tolist()], ranges.starts.tolist(), ranges.ends.tolist()


def batch_of(answers: list[Any], ranges: Ranges, out: Any = None) -> RangeBatch:
    """Make a `RangeBatch` of bytes and exceptions, none longer than asked (I9)."""
    errors = {k: answer for k, answer in enumerate(answers) if isinstance(answer, Exception)}
    asked = (ranges.ends - ranges.starts).tolist()
    pieces = [
        b"" if isinstance(answer, Exception) else bytes(answer)[:most]
        for answer, most in zip(answers, asked, strict=True)
    ]
    length = np.fromiter(map(len, pieces), np.int64, len(pieces))
    data = np.frombuffer(b"".join(pieces), np.uint8) if length.sum() else np.empty(0, np.uint8)
    if out is not None:
        buffer = checked_out(out, len(data))
        buffer[: len(data)] = data
        data = buffer
    return RangeBatch(data, np.cumsum(length) - length, length, errors)


def checked_out(out: Any, nbytes: int) -> UInt8Array:
    """Return the caller's buffer as an array, if the result can be written into it.

    Raises
    ------
    TypeError
        It is read-only.
    ValueError
        It is too small.
    """
    array = np.frombuffer(out, np.uint8)
    if not array.flags.writeable:
        msg = "out must be writable"
        raise TypeError(msg)
    if len(array) < nbytes:
        msg = f"out holds {len(array)} bytes, the result needs {nbytes}"
        raise ValueError(msg)
    return array


def collect_cat(paths: list[str], found: Iterable[Any], on_error: str, *, is_alone: bool) -> Any:
    """Give the answers of `cat` the shape that fsspec specifies: a dict, but of a file that was named."""
    results = dict(zip(paths, found, strict=True))
    errors = [answer for answer in results.values() if isinstance(answer, Exception)]
    if errors and (on_error == "raise" or (is_alone and on_error == "omit")):
        raise errors[0]
    for error in errors:
        without_frames(error)
    if on_error == "omit":
        results = {key: value for key, value in results.items() if not isinstance(value, Exception)}
    if is_alone and results:
        return next(iter(results.values()))
    return results
