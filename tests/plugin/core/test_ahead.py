"""What is read ahead: streams of columns and of blocks, how far, and when not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from headrace.core.ahead import FIRST_DEPTH, MOST_DEPTH, MOST_UNPROVEN, PROVEN_DEPTH, Ahead, Habits

GROUP = 1000
COLUMN = 100
BLOCK = 1 << 20


@dataclass(frozen=True)
class Table:
    """A file of `groups` groups with ten columns of a hundred bytes each."""

    groups: int = 100

    def locate(self, start: int, end: int) -> tuple[int, int] | None:
        group, column = divmod(start, GROUP)
        return (group, column // COLUMN) if column % COLUMN == 0 and end - start == COLUMN else None

    def span(self, group: int, columns: object) -> tuple[int, int] | None:
        assert isinstance(columns, int)
        start = group * GROUP + columns * COLUMN
        return (start, start + COLUMN) if group < self.groups and columns < 10 else None

    def chunk(self, group: int, column: int) -> tuple[int, int]:
        span = self.span(group, column)
        assert span is not None
        return span


def opened(habits: Habits, path: str, table: Table) -> tuple[Ahead, list[tuple[int, int]]]:
    habits.note_opened(path)
    ahead = Ahead(table.groups * GROUP, habits)
    return ahead, ahead.learn(table)


def groups_of(spans: list[tuple[int, int]]) -> list[int]:
    return [start // GROUP for start, _ in spans]


def test_the_same_columns_of_the_next_groups_are_asked_for() -> None:
    table = Table()
    ahead, at_once = opened(Habits(), "a", table)
    assert at_once == []
    assert ahead.note(*table.chunk(0, 3)) == [table.chunk(1, 3), table.chunk(2, 3)]
    assert FIRST_DEPTH == 2


def test_the_depth_doubles_with_each_range_asked_for_in_time_and_none_is_asked_for_twice() -> None:
    table = Table()
    ahead, _ = opened(Habits(), "a", table)
    asked, depths = [], []
    for group in range(table.groups):
        spans = groups_of(ahead.note(*table.chunk(group, 0)))
        asked += spans
        depths.append(asked[-1] - group)
    assert asked == list(range(1, table.groups))
    assert depths[:5] == [2, 4, 8, 16, MOST_DEPTH]
    assert max(depths) == MOST_DEPTH


def test_nothing_beyond_the_last_group_is_asked_for() -> None:
    table = Table(groups=2)
    ahead, _ = opened(Habits(), "a", table)
    assert groups_of(ahead.note(*table.chunk(0, 0))) == [1]
    assert ahead.note(*table.chunk(1, 0)) == []


def test_ranges_that_come_in_another_order_are_asked_for_once() -> None:
    """Arrow's threads take a file's lock as they can."""
    table = Table()
    ahead, _ = opened(Habits(), "a", table)
    asked = []
    for group in (1, 0, 3, 2, 5, 4, 7, 6):
        asked += groups_of(ahead.note(*table.chunk(group, 0)))
    assert len(asked) == len(set(asked))
    assert min(asked) > 1


def test_a_reader_of_single_groups_is_guessed_at_a_few_times_only() -> None:
    """As tasks do which read a row group each, opening the file for it."""
    habits, table = Habits(), Table()
    asked = []
    for task in range(50):
        ahead, at_once = opened(habits, f"file {task % 5}", table)
        asked += at_once + ahead.note(*table.chunk(task, 0))
    assert len(asked) <= 2 * MOST_UNPROVEN * FIRST_DEPTH  # as the layout is known, and at the first range


def test_files_of_one_group_are_asked_for_as_soon_as_they_are_known() -> None:
    habits, table = Habits(), Table(groups=1)
    at_once = [scan(habits, f"file {number}", table, (2, 5)) for number in range(50)]
    assert at_once == [[], *[[table.chunk(0, 2), table.chunk(0, 5)]] * 49]


def test_different_columns_without_a_right_guess_share_what_may_be_guessed() -> None:
    habits, table = Habits(), Table()
    asked = []
    for task in range(50):
        ahead, at_once = opened(habits, f"file {task}", table)
        asked += at_once + ahead.note(*table.chunk(task, task % 10))
    assert len(asked) == MOST_UNPROVEN * FIRST_DEPTH


def test_a_reader_that_was_not_believed_is_once_it_goes_on() -> None:
    habits, table = Habits(), Table()
    for task in range(MOST_UNPROVEN):
        opened(habits, f"file {task}", table)[0].note(*table.chunk(0, 0))
    ahead, _ = opened(habits, "scanned", table)
    assert ahead.note(*table.chunk(0, 0)) == []
    assert groups_of(ahead.note(*table.chunk(1, 0))) == [2, 3]


def test_who_skips_groups_is_followed_less_and_less() -> None:
    table = Table()
    ahead, _ = opened(Habits(), "a", table)
    lengths = [len(ahead.note(*table.chunk(group, 0))) for group in (0, 10, 20, 30)]
    assert lengths == [2, 1, 0, 0]


def scan(habits: Habits, path: str, table: Table, columns: tuple[int, ...]) -> list[tuple[int, int]]:
    """Read columns of all groups; returns what was asked for when the layout was known."""
    ahead, at_once = opened(habits, path, table)
    for group in range(table.groups):
        for column in columns:
            ahead.note(*table.chunk(group, column))
    return at_once


def test_the_next_file_of_a_scan_begins_with_what_the_last_was_read_for() -> None:
    habits, table = Habits(), Table()
    assert scan(habits, "a", table, (2, 5)) == []
    at_once = scan(habits, "b", table, (2, 5))
    assert at_once == sorted(table.chunk(group, column) for group in range(PROVEN_DEPTH) for column in (2, 5))


def test_another_scan_begins_with_a_guess() -> None:
    habits, table = Habits(), Table()
    scan(habits, "a", table, (2,))
    scan(habits, "b", table, (2,))
    assert len(scan(habits, "a", table, (7,))) == FIRST_DEPTH  # may be for other columns, as here


def test_files_whose_columns_nobody_reads_any_more_are_guessed_at_a_few_times_only() -> None:
    """As `count_rows` does after a scan, which reads footers alone."""
    habits, table = Habits(), Table()
    scan(habits, "a", table, (2,))
    scan(habits, "a", table, (2,))
    habits.note_opened("a")
    at_once = [opened(habits, f"file {number}", table)[1] for number in range(30)]
    assert sum(map(len, at_once)) == MOST_UNPROVEN * FIRST_DEPTH


def test_a_file_without_those_columns_is_left_alone() -> None:
    habits = Habits()
    scan(habits, "a", Table(), (2,))
    assert opened(habits, "empty", Table(groups=0))[1] == []


def spans_of_blocks(size: int, block: int) -> list[list[tuple[int, int]]]:
    ahead = Ahead(size, Habits())
    return [ahead.note(start, min(start + block, size)) for start in range(0, size, block)]


def test_blocks_are_followed_from_the_second_on_up_to_the_end_of_the_file() -> None:
    block = 8 << 20
    size = 6 * block + 10
    spans = spans_of_blocks(size, block)
    assert spans[0] == []
    assert spans[1] == [(2 * block, 3 * block), (3 * block, 4 * block)]
    assert spans[2] == [(4 * block, 5 * block), (5 * block, 6 * block), (6 * block, size)]
    assert spans[3:] == [[], [], [], []]


@pytest.mark.parametrize(
    ("block", "first"),
    [(64 << 10, PROVEN_DEPTH), (1 << 20, 8), (3 << 20, FIRST_DEPTH), (64 << 20, FIRST_DEPTH)],
)
def test_of_short_blocks_more_are_asked_for_at_first(block: int, first: int) -> None:
    spans = spans_of_blocks(100 * block, block)
    assert [len(one) for one in spans[:2]] == [0, first]
    assert len({span for one in spans for span in one}) == 98


@pytest.mark.parametrize(
    "reads",
    [
        [(0, BLOCK), (2 * BLOCK, 3 * BLOCK), (4 * BLOCK, 5 * BLOCK)],  # not in a row
        [(0, 8), (8, 16), (16, 24)],  # short
        [(0, BLOCK), (BLOCK, BLOCK + 5), (BLOCK + 5, BLOCK + 70)],  # of different lengths
        [(5 * BLOCK, 6 * BLOCK), (4 * BLOCK, 5 * BLOCK), (3 * BLOCK, 4 * BLOCK)],  # backwards
    ],
)
def test_other_reads_are_no_blocks(reads: list[tuple[int, int]]) -> None:
    ahead = Ahead(100 * BLOCK, Habits())
    assert [ahead.note(*read) for read in reads] == [[]] * len(reads)


def blocks_in_a_row(habits: Habits, count: int) -> list[int]:
    """Read so many blocks of a file; returns how many more were asked for at each."""
    ahead = Ahead(100 * BLOCK, habits)
    return [len(ahead.note(k * BLOCK, (k + 1) * BLOCK)) for k in range(count)]


def test_who_reads_two_blocks_and_goes_elsewhere_is_guessed_at_a_few_times_only() -> None:
    habits = Habits()
    asked = [blocks_in_a_row(habits, 2)[1] for _ in range(100)]
    assert asked == [PROVEN_DEPTH] * MOST_UNPROVEN + [0] * (100 - MOST_UNPROVEN)


def test_who_reads_all_of_a_file_by_blocks_is_believed_again() -> None:
    habits = Habits()
    for _ in range(MOST_UNPROVEN):
        blocks_in_a_row(habits, 2)
    assert blocks_in_a_row(habits, 4) == [0, 0, PROVEN_DEPTH, PROVEN_DEPTH + 1]
    assert blocks_in_a_row(habits, 2)[1] == PROVEN_DEPTH


def test_files_of_two_blocks_are_no_guesses() -> None:
    habits = Habits()
    for _ in range(100):
        ahead = Ahead(2 * BLOCK, habits)
        assert ahead.note(0, BLOCK) == ahead.note(BLOCK, 2 * BLOCK) == []
    assert blocks_in_a_row(habits, 2)[1] == PROVEN_DEPTH


def test_what_is_remembered_is_bounded() -> None:
    habits = Habits()
    for number in range(20_000):
        habits.note_opened(f"file {number}")
        habits.note_wanted(number)
        habits.depth_of(number)
        habits.note_right(number)
    sizes = [len(value) for value in vars(habits).values()]
    assert max(sizes) <= 10_001
