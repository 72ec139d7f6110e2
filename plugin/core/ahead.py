"""What of a file will be read next: the policy of reading ahead (I7).

A *stream* is a row of ranges that are read one after the other: the same columns of one row group after the
other, or block after block of a file. Once a reader follows one, its next ranges are asked for before the
reader does. How many (`depth`) doubles with each range that was asked for in time, as the kernel's readahead
does.

* A reader of row groups is believed at the first range: what scans a file would be half over at the
  second. One that takes single row groups would never use what comes after, so guesses are few until one was
  right (`MOST_UNPROVEN`).
* Files of one table are read by the same columns. What the streams of one file have shown, its view's
  `Habits`, starts those of the next as soon as that one's layout is known.
* Blocks are believed at the second, as the first may be a look at a header; short ones then for some MiB.
  Where that was wrong too often (of records of two blocks, say), they are at the third.

Threading: an `Ahead` belongs to one file and is called under its lock. `Habits` are shared by the files of a
view; each step on them is one of the GIL's, and a lost count costs a guess more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable

Span = tuple[int, int]
"""Bytes ``[start, end)`` of a file."""

FIRST_DEPTH = 2
MOST_DEPTH = 32
"""Ranges of a stream that are asked for ahead, at first and at the most."""

FIRST_BLOCK_BYTES = 8 << 20
"""Of blocks so many bytes are asked for at first, but no more than `PROVEN_DEPTH` blocks."""

PROVEN_DEPTH = 8
"""Ranges asked for at once in a file of a scan whose other files are read by the same columns."""

MOST_UNPROVEN = 8
"""Streams that are guessed at, one after the other, though none of their ranges was wanted."""

MOST_FILES = 10_000
MOST_COLUMNS = 1000
"""Files and ranges of columns that are remembered."""

_BLOCKS = object()
"""What guesses at blocks are counted under, where those at row groups are under their columns."""

LEAST_BLOCK_BYTES = 64 << 10
"""Shorter reads are no blocks; small sequential ones come as blocks from the file's own buffer."""


class Layout(Protocol):
    """Where the row groups and columns of a file lie."""

    @property
    def groups(self) -> int:
        """How many row groups there are."""

    def locate(self, start: int, end: int) -> tuple[int, Hashable] | None:
        """Return the group and the columns of a range, or None where it is not just some columns.

        The columns are named so that files of one table agree on them.
        """

    def span(self, group: int, columns: Hashable) -> Span | None:
        """Return where those columns of a group lie, or None where the file has no such columns."""


class Habits:
    """What the streams of a view's files have shown.

    A *scan* lasts until a file is opened again: the next may be for other columns.
    """

    def __init__(self) -> None:
        self._guesses: dict[Hashable, int] = {}  # at each columns since one was right; None: at any
        self._known: dict[Hashable, None] = {}  # columns that were read, oldest first
        self._proven: set[Hashable] = set()  # those that a guess was right about, in this scan
        self._opened: set[str] = set()

    def note_opened(self, path: str) -> None:
        """Note that a file is opened."""
        if path in self._opened or len(self._opened) >= MOST_FILES:
            self._opened.clear()
            self._proven.clear()
        self._opened.add(path)

    def known(self) -> list[Hashable]:
        """Return the columns that files were read by."""
        return list(self._known)

    def depth_of(self, columns: Hashable) -> int:
        """Say how far ahead to ask in a stream that has shown nothing yet."""
        if columns in self._proven:
            return PROVEN_DEPTH
        if max(self._guesses.get(name, 0) for name in (columns, None)) >= MOST_UNPROVEN:
            return 0
        for name in (columns, None):
            self._guesses[name] = self._guesses.get(name, 0) + 1
        return FIRST_DEPTH

    def follows_block(self) -> bool:
        """Say whether a reader of two blocks in a row will go on."""
        guesses = self._guesses.get(_BLOCKS, 0)
        if guesses >= MOST_UNPROVEN:
            return False
        self._guesses[_BLOCKS] = guesses + 1
        return True

    def note_block_right(self) -> None:
        """Note that a reader of blocks went on."""
        self._guesses[_BLOCKS] = 0

    def note_wanted(self, columns: Hashable) -> None:
        """Note that a file is read by these columns."""
        if len(self._known) >= MOST_COLUMNS and columns not in self._known:
            self._known.clear()
            self._guesses.clear()
            self._proven.clear()
        self._known[columns] = None

    def note_right(self, columns: Hashable) -> None:
        """Note that a reader of these columns went on to a range that was asked for ahead."""
        self._guesses[columns] = self._guesses[None] = 0
        self._proven.add(columns)


class _Stream:
    """Ranges in a row: how far ahead to ask, and the last one that was wanted."""

    __slots__ = ("depth", "last")

    def __init__(self, depth: int, last: int) -> None:
        self.depth = depth
        self.last = last


class Ahead:
    """Says what of one file to read ahead.

    Parameters
    ----------
    size
        Bytes of the file.
    habits
        Those of the view.
    """

    def __init__(self, size: int, habits: Habits) -> None:
        self._size = size
        self._habits = habits
        self._layout: Layout | None = None
        self._streams: dict[Hashable, _Stream] = {}
        self._asked: set[Span] = set()  # ranges of columns that were asked for ahead
        self._wanted: set[Span] = set()  # and those that were wanted
        self._blocks = _Blocks(0, 0)
        self._last_end = -1

    def learn(self, layout: Layout) -> list[Span]:
        """Note the file's layout; returns what files like it were read for, in the order of the file."""
        self._layout = layout
        spans: list[Span] = []
        for columns in self._habits.known():
            if layout.span(0, columns) is not None and (depth := self._habits.depth_of(columns)):
                stream = self._streams[columns] = _Stream(depth, -1)
                spans += self._following(layout, stream, columns, 0)
        return sorted(spans)

    def note(self, start: int, end: int) -> list[Span]:
        """Note that a range is wanted now; returns which to read ahead, the next one first."""
        layout = self._layout
        found = None if layout is None else layout.locate(start, end)
        if layout is None or found is None:
            return self._note_block(start, end)
        group, columns = found
        is_right = (start, end) in self._asked and (start, end) not in self._wanted
        self._wanted.add((start, end))
        self._habits.note_wanted(columns)
        stream = self._streams.get(columns)
        if stream is None:
            stream = self._streams[columns] = _Stream(self._habits.depth_of(columns), group)
        elif is_right:
            if stream.last >= 0 or layout.groups == 1:  # else it may have come for this one alone
                self._habits.note_right(columns)
                stream.depth = min(max(2 * stream.depth, FIRST_DEPTH), MOST_DEPTH)
        elif group == stream.last + 1:
            stream.depth = max(stream.depth, FIRST_DEPTH)  # it goes on, though nobody asked ahead for it
        elif group > stream.last:
            stream.depth //= 2  # it skips some
        stream.last = max(stream.last, group)
        return self._following(layout, stream, columns, group + 1)

    def _following(self, layout: Layout, stream: _Stream, columns: Hashable, first: int) -> list[Span]:
        """Return the ranges to ask for, from group `first` on, that nobody has."""
        groups = range(first, min(first + stream.depth, layout.groups))
        spans = [span for group in groups if (span := layout.span(group, columns)) is not None]
        spans = [span for span in spans if span not in self._asked and span not in self._wanted]
        self._asked.update(spans)
        return spans

    def _note_block(self, start: int, end: int) -> list[Span]:
        is_next, self._last_end = start == self._last_end, end
        blocks = self._blocks
        is_last = end == self._size and end - start < blocks.length
        if not is_next or (end - start != blocks.length and not is_last):
            self._blocks = _Blocks(start, end - start)
            return []
        return blocks.note(start, self._size, self._habits) if blocks.length >= LEAST_BLOCK_BYTES else []


class _Blocks:
    """Blocks of one length in a row."""

    def __init__(self, begin: int, length: int) -> None:
        self.begin = begin
        self.length = length
        self._next = 0  # up to which one they were asked for
        self._depth = 0

    def note(self, start: int, size: int, habits: Habits) -> list[Span]:
        """Note that another one is wanted; returns which to ask for, up to the end of the file."""
        number = (start - self.begin) // self.length
        if number < self._next:
            habits.note_block_right()
            self._depth = min(2 * self._depth, MOST_DEPTH)
        else:
            if number > 1:
                habits.note_block_right()  # it goes on, though nobody asked ahead for it
            if start + self.length >= size or not habits.follows_block():
                return []
            self._depth = min(max(FIRST_BLOCK_BYTES // self.length, FIRST_DEPTH), PROVEN_DEPTH)
        first, self._next = max(self._next, number + 1), max(self._next, number + 1 + self._depth)
        starts = [self.begin + k * self.length for k in range(first, self._next)]
        return [(start, min(start + self.length, size)) for start in starts if start < size]
