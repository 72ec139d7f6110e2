"""The planner against a model that reads byte by byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.gather import check_extents, gather
from headrace.core.plan import Plan, plan_one, plan_ranges, settle

FILE_BYTES = 200
FILES = [np.random.default_rng(seed).integers(0, 256, FILE_BYTES, np.uint8) for seed in range(3)]

untimed = settings(deadline=None)

a_range = st.tuples(st.integers(0, 2), st.integers(0, FILE_BYTES), st.integers(0, FILE_BYTES)).map(
    lambda t: (t[0], min(t[1:]), max(t[1:]))
)
a_short_range = st.tuples(st.integers(0, 2), st.integers(0, 180), st.integers(0, 20)).map(
    lambda t: (t[0], t[1], t[1] + t[2])
)
some_ranges = st.lists(a_range, max_size=12) | st.lists(a_short_range, max_size=40)
a_gap = st.integers(-1, 30)
a_max_op = st.integers(1, 250)


def plan_of(ranges, gap=0, max_op=1 << 20) -> Plan:
    files, starts, ends = zip(*ranges, strict=True) if ranges else ((), (), ())
    return plan_ranges(files, starts, ends, max_gap_bytes=gap, max_op_bytes=max_op)


def ops_of(plan):
    return list(zip(plan.op_file.tolist(), plan.op_start.tolist(), plan.op_length.tolist(), strict=True))


def fill(plan, contents):
    """Perform the ops as a filesystem would: short past the end. Give the buffer and the counts."""
    buffer = np.full(plan.buffer_bytes, 0xEE, np.uint8)
    got = np.zeros(plan.op_file.size, np.int64)
    for k, (file, start, length) in enumerate(ops_of(plan)):
        piece = contents[file][start : start + length]
        dest = int(plan.op_dest[k])
        buffer[dest : dest + piece.size] = piece
        got[k] = piece.size
    return buffer, got


def nothing(plan):
    return np.zeros(plan.op_file.size, np.bool_)


def naive_groups(ranges, gap):
    """Groups of caller's indices, by the definition of coalescing."""
    order = sorted((f, s, i) for i, (f, s, e) in enumerate(ranges) if e > s)
    groups: list[list[int]] = []
    reach = {}
    for file, start, i in order:
        joins = gap >= 0 and file in reach and start - reach[file] <= gap
        if joins:
            groups[-1].append(i)
        else:
            groups.append([i])
        reach[file] = max(reach.get(file, 0), ranges[i][2])
    return groups


def check_plan(plan, ranges, gap, max_op):
    """Everything that `Plan` promises."""
    lengths = [e - s for _, s, e in ranges]
    groups = naive_groups(ranges, gap)
    naive_ops = []
    for members in groups:
        file, start = ranges[members[0]][0], min(ranges[i][1] for i in members)
        end = max(ranges[i][2] for i in members)
        naive_ops += [(file, at, min(max_op, end - at)) for at in range(start, end, max_op)]
    assert ops_of(plan) == naive_ops
    # Overlapping ranges that are kept apart each keep their ops together: no order holds then.
    assert gap < 0 or naive_ops == sorted(naive_ops)
    assert plan.range_length.tolist() == lengths
    assert plan.range_file.tolist() == [f for f, _, _ in ranges]
    assert plan.range_start.tolist() == [s for _, s, _ in ranges]
    assert plan.buffer_bytes == sum(length for *_, length in naive_ops)
    assert plan.buffer_bytes == sum(lengths) + plan.gap_bytes - plan.shared_bytes
    assert plan.gap_bytes == naive_gap_bytes(ranges, groups)
    packed_dest = np.cumsum([0, *lengths])[:-1].tolist()
    assert plan.is_packed == (plan.range_dest.tolist() == packed_dest)
    if all(len(members) == 1 for members in groups):
        assert plan.is_packed
    assert_ops_tile_buffer(plan)
    assert_ops_cover(plan, ranges)


def naive_gap_bytes(ranges, groups):
    gaps = 0
    for members in groups:
        wanted = set()
        for i in members:
            wanted.update(range(ranges[i][1], ranges[i][2]))
        gaps += max(wanted) + 1 - min(wanted) - len(wanted)
    return gaps


def assert_ops_tile_buffer(plan):
    """Every byte of the buffer belongs to exactly one op."""
    writes = np.zeros(plan.buffer_bytes, np.int64)
    for dest, length in zip(plan.op_dest.tolist(), plan.op_length.tolist(), strict=True):
        assert dest >= 0
        assert dest + length <= plan.buffer_bytes
        writes[dest : dest + length] += 1
    assert (writes == 1).all()


def assert_ops_cover(plan, ranges):
    """A range's ops are the ones that hold bytes of it, at the place where the range looks."""
    first, end = plan.range_first_op.tolist(), plan.range_end_op.tolist()
    for i, (file, start, stop) in enumerate(ranges):
        if start == stop:
            assert first[i] == end[i]
            continue
        ops = range(first[i], end[i])
        assert len(ops) >= 1
        held = set()
        for k in ops:
            op_start, op_length = int(plan.op_start[k]), int(plan.op_length[k])
            mine = set(range(op_start, op_start + op_length)) & set(range(start, stop))
            assert mine, "an op without a byte of the range"
            assert plan.op_file[k] == file
            assert plan.range_dest[i] - start == plan.op_dest[k] - op_start
            held |= mine
        assert held == set(range(start, stop))


@untimed
@given(some_ranges, a_gap, a_max_op)
def test_a_plan_keeps_its_promises(ranges, gap, max_op):
    check_plan(plan_of(ranges, gap, max_op), ranges, gap, max_op)


@untimed
@given(some_ranges, a_gap, a_max_op)
def test_every_range_gets_its_bytes(ranges, gap, max_op):
    plan = plan_of(ranges, gap, max_op)
    buffer, got = fill(plan, FILES)
    settled = settle(plan, got, nothing(plan), nothing(plan))
    assert not settled.unsettled.any()
    assert (settled.failed_op == -1).all()
    packed, offsets = gather(buffer, plan.range_dest, settled.length)
    for i, (file, start, end) in enumerate(ranges):
        expected = FILES[file][start:end].tobytes()
        assert packed[offsets[i] : offsets[i + 1]].tobytes() == expected
    if plan.is_packed:
        assert packed.tobytes() == buffer.tobytes()


@untimed
@given(st.integers(0, 5), st.integers(0, 100), st.integers(0, 300), st.integers(1, 400))
def test_plan_one_is_plan_ranges_of_one(file, start, length, max_op):
    one = plan_one(file, start, length, max_op)
    many = plan_ranges(file, [start], [start + length], max_gap_bytes=9, max_op_bytes=max_op)
    for name in Plan.__slots__:
        mine, other = getattr(one, name), getattr(many, name)
        assert np.array_equal(mine, other), name
        assert np.asarray(mine).dtype == np.asarray(other).dtype, name


@dataclass
class Answer:
    """What a caller must see of one range: bytes, the op whose error it is, or `ask again`."""

    length: int
    failed_op: int = -1
    unsettled: bool = False


def naive_answer(plan, i, got, failed, final):
    """Walk the ops of range i in order, as the definition of `settle` says."""
    start, asked = int(plan.range_start[i]), int(plan.range_length[i])
    ops = range(int(plan.range_first_op[i]), int(plan.range_end_op[i]))
    for k in ops:
        op = (int(plan.op_start[k]), int(plan.op_length[k]))
        if failed[k]:
            is_own = final[k] or op == (start, asked)
            return Answer(0, k if is_own else -1, not is_own)
        if got[k] < op[1]:
            delivered = min(max(op[0] + int(got[k]) - start, 0), asked)
            starts_with_op = plan.op_start[ops[0]] == start
            return Answer(delivered, -1, delivered == 0 and not starts_with_op)
    return Answer(asked)


def assert_settled_as(plan, settled, answers):
    assert settled.length.tolist() == [a.length for a in answers]
    assert settled.failed_op.tolist() == [a.failed_op for a in answers]
    assert settled.unsettled.tolist() == [a.unsettled for a in answers]
    assert (settled.length <= plan.range_length).all()


@untimed
@given(some_ranges, a_gap, a_max_op, st.lists(st.integers(0, FILE_BYTES), min_size=3, max_size=3))
def test_truncated_files_give_what_is_there(ranges, gap, max_op, sizes):
    contents = [file[:size] for file, size in zip(FILES, sizes, strict=True)]
    plan = plan_of(ranges, gap, max_op)
    buffer, got = fill(plan, contents)
    settled = settle(plan, got, nothing(plan), nothing(plan))
    for i, (file, start, end) in enumerate(ranges):
        expected = contents[file][start:end].tobytes()
        dest, length = int(plan.range_dest[i]), int(settled.length[i])
        assert buffer[dest : dest + length].tobytes() == expected
        # Only a range past the end may be asked again; one asked as it is has its answer.
        assert not settled.unsettled[i] or (end > start >= sizes[file])
    answers = [naive_answer(plan, i, got, nothing(plan), nothing(plan)) for i in range(len(ranges))]
    assert_settled_as(plan, settled, answers)


@untimed
@given(some_ranges, a_gap, a_max_op, st.integers(0, FILE_BYTES), st.randoms(use_true_random=False))
def test_failed_and_short_ops_fail_the_right_ranges(ranges, gap, max_op, size, random):
    plan = plan_of(ranges, gap, max_op)
    _, got = fill(plan, [file[:size] for file in FILES])
    m = got.size
    failed = np.array([random.random() < 0.3 for _ in range(m)], np.bool_)
    final = failed & np.array([random.random() < 0.4 for _ in range(m)], np.bool_)
    got[failed] = plan.op_length[failed]  # whatever a failed op says it got is ignored
    answers = [naive_answer(plan, i, got, failed, final) for i in range(len(ranges))]
    assert_settled_as(plan, settle(plan, got, failed, final), answers)


def test_no_ranges():
    plan = plan_of([])
    assert (plan.buffer_bytes, plan.is_packed, plan.op_file.size) == (0, True, 0)
    settled = settle(plan, np.zeros(0, np.int64), nothing(plan), nothing(plan))
    assert settled.length.size == 0


def test_only_empty_ranges_need_no_op():
    plan = plan_of([(0, 5, 5), (1, 0, 0)])
    assert ops_of(plan) == []
    assert plan.is_packed
    settled = settle(plan, np.zeros(0, np.int64), nothing(plan), nothing(plan))
    assert settled.length.tolist() == [0, 0]
    assert not settled.unsettled.any()


def test_duplicates_are_read_once():
    plan = plan_of([(0, 10, 20)] * 3)
    assert ops_of(plan) == [(0, 10, 10)]
    assert (plan.shared_bytes, plan.gap_bytes, plan.is_packed) == (20, 0, False)


def test_a_negative_gap_reads_duplicates_apart():
    plan = plan_of([(0, 10, 20)] * 3, gap=-1)
    assert ops_of(plan) == [(0, 10, 10)] * 3
    assert (plan.shared_bytes, plan.is_packed) == (0, True)


def test_a_nested_range_does_not_hide_the_reach_of_the_one_around_it():
    plan = plan_of([(0, 0, 100), (0, 10, 20), (0, 90, 120), (1, 0, 50), (1, 5, 9), (1, 50, 60)])
    assert ops_of(plan) == [(0, 0, 120), (1, 0, 60)]
    assert plan.shared_bytes == 10 + 10 + 4


def test_a_gap_is_merged_up_to_its_limit():
    assert ops_of(plan_of([(0, 0, 10), (0, 15, 20)], gap=4)) == [(0, 0, 10), (0, 15, 5)]
    merged = plan_of([(0, 0, 10), (0, 15, 20)], gap=5)
    assert ops_of(merged) == [(0, 0, 20)]
    assert merged.gap_bytes == 5


def test_files_are_never_merged():
    assert ops_of(plan_of([(0, 0, 10), (1, 10, 20)], gap=1000)) == [(0, 0, 10), (1, 10, 10)]


def test_unmerged_ranges_lie_in_the_callers_order():
    plan = plan_of([(1, 50, 60), (0, 7, 7), (0, 90, 95), (0, 0, 3)])
    assert plan.is_packed
    assert plan.range_dest.tolist() == [0, 10, 10, 15]
    assert plan.op_dest.tolist() == [15, 10, 0]


def test_sorted_touching_ranges_are_packed():
    plan = plan_of([(0, 0, 10), (0, 10, 10), (0, 10, 30)])
    assert ops_of(plan) == [(0, 0, 30)]
    assert plan.is_packed


def test_merged_groups_lie_in_the_order_of_the_callers_first_wish():
    plan = plan_of([(1, 0, 10), (1, 10, 30), (0, 0, 5), (0, 5, 6)])
    assert ops_of(plan) == [(0, 0, 6), (1, 0, 30)]
    assert plan.op_dest.tolist() == [30, 0]
    assert plan.is_packed


def test_a_group_lies_where_the_first_of_its_ranges_was_asked():
    plan = plan_of([(0, 5, 6), (1, 0, 10), (0, 0, 5)])
    assert ops_of(plan) == [(0, 0, 6), (1, 0, 10)]
    assert plan.op_dest.tolist() == [0, 6]


def test_a_long_range_is_split_in_equal_steps():
    plan = plan_of([(0, 5, 30)], max_op=10)
    assert ops_of(plan) == [(0, 5, 10), (0, 15, 10), (0, 25, 5)]
    assert (plan.range_first_op[0], plan.range_end_op[0]) == (0, 3)


@pytest.mark.parametrize("base", [2**62, 2**63 - 1 - 4096])
@pytest.mark.parametrize("gap", [-1, 0, 2**70])
def test_offsets_near_the_limit_of_int64(base, gap):
    ranges = [(1, base + 100, base + 4096), (0, base, base + 10), (1, base, base + 200), (0, 0, 1)]
    plan = plan_of(ranges, gap=min(gap, 50) if gap < 0 else 0, max_op=2**63 + 5)
    assert plan.op_start.min() == 0
    assert (plan.op_start + plan.op_length).max() == base + 4096
    wide = [r for r in ranges if r[0] == 1]
    assert ops_of(plan_of(wide, gap=max(gap, 0)))[0] == (1, base, 4096)


def test_a_gap_wider_than_any_file_is_one_op():
    plan = plan_of([(0, 0, 1), (0, 2**62 - 1, 2**62)], gap=2**70, max_op=2**63 - 1)
    assert ops_of(plan) == [(0, 0, 2**62)]
    assert plan.gap_bytes == 2**62 - 2


def test_one_huge_range_is_split_exactly():
    # A float would round the length to a multiple of the op and lose the last byte.
    for plan in (plan_one(0, 0, 2**60 + 1, 2**60), plan_of([(0, 0, 2**60 + 1)], max_op=2**60)):
        assert ops_of(plan) == [(0, 0, 2**60), (0, 2**60, 1)]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_million_ranges(shuffled):
    n = 1_000_000
    rng = np.random.default_rng(5)
    starts = np.arange(n) * 5000
    if shuffled:
        rng.shuffle(starts)
    files = rng.integers(0, 3, n) if shuffled else 0
    plan = plan_ranges(files, starts, starts + 4096, max_gap_bytes=0, max_op_bytes=3000)
    assert plan.op_file.size == 2 * n
    assert plan.is_packed
    assert plan.buffer_bytes == n * 4096
    got = plan.op_length.copy()
    got[::2] -= 7
    settled = settle(plan, got, nothing(plan), nothing(plan))
    assert (settled.length == 3000 - 7).all()


def test_both_sorts_are_stable():
    """The one-word sort and lexsort (taken when a word is too narrow) agree."""
    rng = np.random.default_rng(3)
    files, starts = rng.integers(0, 4, 5000), rng.integers(0, 300, 5000)
    for shift in (0, 2**61):
        moved = starts + shift
        plan = plan_ranges(files, moved, moved + 1, max_gap_bytes=-1, max_op_bytes=9)
        expected = np.lexsort((starts, files))
        assert np.array_equal(plan.op_dest, expected)  # one byte a range: dest is the position


def test_the_plan_does_not_alias_its_input():
    starts, ends = np.array([0, 10]), np.array([5, 15])
    plan = plan_ranges(0, starts, ends, max_gap_bytes=0, max_op_bytes=99)
    starts += 1000
    ends += 1000
    assert plan.range_start.tolist() == plan.op_start.tolist() == [0, 10]


def test_shared_constants_cannot_be_spoiled():
    with pytest.raises(ValueError, match="read-only"):
        plan_one(0, 0, 10, 100).op_dest[0] = 5


@pytest.mark.parametrize(
    ("files", "starts", "ends", "message"),
    [
        (0, [0, -1], [5, 5], r"starts\[1\] is -1"),
        (0, [0, 9], [5, 8], r"ends\[1\] is 8, before starts\[1\], which is 9"),
        (0, [0, 9, -3], [5, 8, 2], r"ends\[1\]"),
        ([0, 0, -2], [1, 1, 1], [2, 2, 2], r"files\[2\] is -2"),
        (-1, [1], [2], r"files\[0\] is -1"),
        (0, [0, 1], [5], "one length, not 2, 2 and 1"),
        ([0], [0, 1], [5, 5], "one length, not 1, 2 and 2"),
        (0, [0], [2**63], r"ends\[0\] is 9223372036854775808: it does not fit"),
        (0, [0, -(2**70)], [1, 1], r"starts\[1\]"),
        (0, np.array([2**64 - 1], np.uint64), [1], r"starts\[0\]"),
        (0, [0, 0, 0], [2**62, 2**62, 2**62], "longer than"),
    ],
)
def test_a_bad_value_is_named(files, starts, ends, message):
    with pytest.raises(ValueError, match=message):
        plan_ranges(files, starts, ends, max_gap_bytes=-1, max_op_bytes=2**62)


@pytest.mark.parametrize(
    ("files", "starts", "ends", "message"),
    [
        (0, [0, 1.5], [5, 5], r"starts\[1\] is 1.5"),
        (0, np.array([0.0]), [5], r"starts\[0\] is .*0.0"),
        (0, [0, None], [5, 5], r"starts\[1\] is None"),
        (0, [0], ["5"], r"ends\[0\] is .*5"),
        (0, [0], np.array([True]), r"ends\[0\]"),
        (1.5, [0], [5], "float"),
        (0, 0, [5], "starts must be a one-dimensional sequence"),
        (0, [[0]], [[5]], "not of shape"),
    ],
)
def test_what_is_no_integer_is_named(files, starts, ends, message):
    with pytest.raises(TypeError, match=message):
        plan_ranges(files, starts, ends, max_gap_bytes=0, max_op_bytes=10)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, object])
def test_any_integers_will_do(dtype):
    starts, ends = np.array([3, 50], dtype), np.array([9, 100], dtype)
    plan = plan_ranges(0, starts, ends, max_gap_bytes=0, max_op_bytes=1000)
    assert ops_of(plan) == [(0, 3, 6), (0, 50, 50)]


def test_empty_input_of_any_type():
    for empty in ([], (), np.array([]), np.array([], np.uint64)):
        plan = plan_ranges(0, empty, empty, max_gap_bytes=0, max_op_bytes=1)
        assert plan.range_length.size == 0


def test_an_op_holds_at_least_a_byte():
    with pytest.raises(ValueError, match="max_op_bytes is 0"):
        plan_ranges(0, [0], [1], max_gap_bytes=0, max_op_bytes=0)
    with pytest.raises(ValueError, match="max_op_bytes is -1"):
        plan_one(0, 0, 1, -1)


def test_too_many_ops_are_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match="ops"):
        plan_ranges(0, [0], [2**61], max_gap_bytes=0, max_op_bytes=1)
    with pytest.raises(ValueError, match="ops"):
        plan_one(0, 0, 2**61, 1)


@pytest.mark.parametrize("bad", [(-1, 0, 1), (0, -1, 1), (0, 0, -1), (0, 2**63 - 2, 5)])
def test_plan_one_refuses(bad):
    with pytest.raises(ValueError, match=str(min(bad)) if min(bad) < 0 else "64 bits"):
        plan_one(*bad, 100)


def test_a_final_error_fails_every_range_of_its_op():
    plan = plan_of([(0, 0, 10), (0, 10, 20)])
    true = np.ones(1, np.bool_)
    settled = settle(plan, np.zeros(1, np.int64), true, true)
    assert settled.failed_op.tolist() == [0, 0]
    assert not settled.unsettled.any()


def test_a_shared_error_is_nobodys_own():
    plan = plan_of([(0, 0, 10), (0, 10, 20), (1, 0, 5)])
    failed = np.array([True, True])
    settled = settle(plan, np.zeros(2, np.int64), failed, ~failed)
    assert settled.unsettled.tolist() == [True, True, False]
    assert settled.failed_op.tolist() == [-1, -1, 1]
    assert settled.length.tolist() == [0, 0, 0]


@untimed
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1500)), max_size=20)
    | st.lists(st.tuples(st.integers(0, 3000), st.just(37)), max_size=20)
)
def test_gather_is_a_join_of_slices(extents):
    buffer = np.random.default_rng(1).integers(0, 256, 4500, np.uint8)
    dest = np.array([d for d, _ in extents], np.int64)
    length = np.array([n for _, n in extents], np.int64)
    packed, offsets = gather(buffer, dest, length)
    assert packed.tobytes() == b"".join(buffer[d : d + n].tobytes() for d, n in extents)
    assert offsets.tolist() == [0, *np.cumsum(length).tolist()]


def test_gather_of_long_and_short_extents():
    buffer = np.random.default_rng(1).integers(0, 256, 5 << 20, np.uint8)
    lengths = [3 << 20, 65536, 65535, 65537, 0, 1, 1 << 20, (1 << 21) + 12345]
    dest, length = np.arange(len(lengths)) * 1001, np.array(lengths)
    packed, _ = gather(buffer, dest, length)
    pieces = (buffer[d : d + n].tobytes() for d, n in zip(dest.tolist(), lengths, strict=True))
    assert packed.tobytes() == b"".join(pieces)


def test_gather_of_equal_long_extents():
    buffer = np.random.default_rng(1).integers(0, 256, 4 << 20, np.uint8)
    dest, size = np.array([5, 0, 1 << 20]), 3 << 20
    packed, _ = gather(buffer, dest, np.full(3, size))
    assert packed.tobytes() == b"".join(buffer[d : d + size].tobytes() for d in dest.tolist())


@pytest.mark.parametrize(("dest", "length"), [(-1, 2), (9, 2), (2**62, 2**62), (0, -1), (11, 0)])
def test_an_extent_outside_the_buffer_is_named(dest, length):
    with pytest.raises(ValueError, match="range 1 "):
        check_extents(10, np.array([0, dest]), np.array([10, length]))
    with pytest.raises(ValueError, match="range 1 "):
        gather(np.zeros(10, np.uint8), np.array([0, dest]), np.array([10, length]))
