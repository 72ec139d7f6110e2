"""`RangeBatch`: views, buffers and lists of the same bytes, and who keeps them alive."""

from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch import RangeBatch

DATA = np.random.default_rng(7).integers(0, 256, 5000, np.uint8)
BOOM = OSError(5, "boom")

untimed = settings(deadline=None)

some_extents = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 900)), max_size=20) | st.lists(
    st.tuples(st.integers(0, 4000), st.just(64)), max_size=20
)


class Owner(np.ndarray):
    """An array that can be watched: plain ones take no weak reference from a pool."""


def batch_of(extents, errors=None, data=DATA):
    dest = np.array([d for d, _ in extents], np.int64)
    return RangeBatch(data, dest, np.array([n for _, n in extents], np.int64), errors)


def address(view):
    return np.frombuffer(view, np.uint8).ctypes.data


@pytest.mark.parametrize("size", [4096, 4097, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("is_packed", [False, True])
def test_lists_of_ranges_of_one_length(size, is_packed):
    """Made by NumPy or one by one, whichever is quicker."""
    data = np.random.default_rng(size).integers(0, 256, 8 * size, np.uint8)
    order = range(8) if is_packed else [3, 0, 7, 5, 5]
    batch = batch_of([(k * size, size) for k in order], data=data)
    assert batch.to_pylist() == [data[k * size : (k + 1) * size].tobytes() for k in order]


@untimed
@given(some_extents, st.booleans())
def test_whole_ranges_need_no_check(extents, is_packed):
    """As of a batch that checks them, wherever they lie."""
    data, checked = DATA, batch_of(extents)
    if is_packed:
        data = np.frombuffer(checked.buffer, np.uint8)
    dest = None if is_packed else np.array([d for d, _ in extents], np.int64)
    length = np.array([n for _, n in extents], np.int64)
    batch = RangeBatch.whole(data, np.array(checked.offsets), length, dest)
    assert batch.to_pylist() == checked.to_pylist()
    assert batch[:] == checked[:]
    assert batch.buffer.equals(checked.buffer)
    assert batch.to_arrow().equals(checked.to_arrow())
    assert pickle.loads(pickle.dumps(batch)).to_pylist() == checked.to_pylist()


@untimed
@given(some_extents, st.booleans())
def test_every_way_out_gives_the_same_bytes(extents, as_arrow):
    data = pa.py_buffer(DATA.tobytes()) if as_arrow else DATA
    expected = [DATA[d : d + n].tobytes() for d, n in extents]
    batch = batch_of(extents, data=data)
    assert batch.to_pylist() == expected
    assert [view.tobytes() for view in batch] == expected
    assert batch[:] == expected
    assert batch.buffer.to_pybytes() == b"".join(expected)  # gathers, if it must
    assert batch.to_pylist() == expected
    assert batch[:] == expected
    array = batch.to_arrow()
    array.validate(full=True)
    assert array.type == pa.large_binary()
    assert array.to_pylist() == expected
    assert batch.nbytes == sum(map(len, expected))
    assert batch.offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()


@untimed
@given(some_extents.filter(bool), st.data())
def test_failed_ranges_keep_their_place(extents, data):
    failed = data.draw(st.sets(st.integers(0, len(extents) - 1), min_size=1))
    errors = {i: OSError(5, f"range {i}") for i in failed}
    batch = batch_of(extents, errors)
    expected = [errors.get(i, DATA[d : d + n].tobytes()) for i, (d, n) in enumerate(extents)]
    assert batch.to_pylist(on_error="return") == expected
    with pytest.raises(OSError, match=f"range {min(failed)}$"):
        batch.to_pylist()
    for i in failed:
        with pytest.raises(OSError, match=f"range {i}$"):
            batch[i]
    array = batch.to_arrow()
    array.validate(full=True)
    assert array.to_pylist() == [None if isinstance(x, OSError) else x for x in expected]
    assert array.null_count == len(failed)
    assert list(batch.errors) == sorted(failed)


def test_packed_ranges_are_never_copied():
    batch = batch_of([(100, 10), (110, 0), (110, 40)])
    begin = DATA.ctypes.data + 100
    assert batch.buffer.address == begin
    assert batch.buffer.size == 50
    assert batch.to_arrow().buffers()[2].address == begin
    assert address(batch[2]) == begin + 10


def test_an_empty_range_anywhere_breaks_no_run():
    batch = batch_of([(4000, 0), (100, 10), (7, 0), (110, 40)])
    assert batch.buffer.address == DATA.ctypes.data + 100
    assert batch[2] == b""


def test_views_of_unpacked_ranges_are_not_copied_before_a_gather():
    batch = batch_of([(50, 10), (0, 10)])
    assert address(batch[0]) == DATA.ctypes.data + 50
    assert batch.buffer is batch.buffer
    assert address(batch[0]) == batch.buffer.address


def test_indexing():
    batch = batch_of([(0, 1), (1, 2), (3, 3)])
    assert len(batch) == 3
    assert [len(view) for view in batch] == [1, 2, 3]
    assert batch[-1] == batch[2] == batch[np.int64(2)]
    assert [len(view) for view in batch[::-2]] == [3, 1]
    for index in (3, -4):
        with pytest.raises(IndexError, match="batch of 3"):
            batch[index]
    with pytest.raises(TypeError):
        batch["0"]


def test_views_are_read_only_unsigned_bytes():
    view = batch_of([(0, 100)], data=DATA.copy())[0]
    assert (view.readonly, view.format, view.itemsize) == (True, "B", 1)
    with pytest.raises(TypeError):
        view[0] = 1
    assert not batch_of([(0, 100)]).offsets.flags.writeable


def test_an_empty_batch():
    for data in (np.zeros(0, np.uint8), pa.py_buffer(b""), DATA):
        batch = batch_of([], data=data)
        assert (len(batch), batch.nbytes, batch.to_pylist(), list(batch)) == (0, 0, [], [])
        assert batch.to_arrow().to_pylist() == []
        assert batch.buffer.size == 0


def test_empty_ranges_of_an_empty_buffer():
    batch = batch_of([(0, 0), (0, 0)], data=np.zeros(0, np.uint8))
    assert batch.to_pylist() == [b"", b""]
    assert [bytes(view) for view in batch] == [b"", b""]


@pytest.mark.parametrize(
    "take",
    [
        lambda batch: batch[1],
        lambda batch: batch[1:],
        lambda batch: batch.buffer,
        lambda batch: batch.to_arrow(),
        lambda batch: batch.to_arrow()[1:],
        lambda batch: np.frombuffer(batch[1], np.uint8),
        iter,
        lambda batch: batch,
    ],
    ids=["view", "views", "buffer", "array", "array slice", "numpy", "iterator", "batch"],
)
def test_whatever_was_taken_keeps_the_owner_alive(take):
    owner = DATA.copy().view(Owner)
    watch = weakref.ref(owner)
    taken = take(batch_of([(0, 10), (10, 20)], data=owner))
    del owner
    gc.collect()
    assert watch() is not None
    del taken
    gc.collect()
    assert watch() is None


def test_a_gather_lets_go_of_what_was_read():
    owner = DATA.copy().view(Owner)
    watch = weakref.ref(owner)
    batch = batch_of([(10, 20), (0, 10)], data=owner)
    del owner
    expected = batch.to_pylist()
    assert batch.buffer.size == 30
    gc.collect()
    assert watch() is None
    assert batch.to_pylist() == expected


def test_the_gap_bytes_are_not_pickled():
    batch = batch_of([(4000, 20), (0, 10), (5, 1)], {2: BOOM})
    pickled = pickle.dumps(batch)
    assert len(pickled) < 1500
    again = pickle.loads(pickled)
    assert again[:2] == batch[:2]
    assert repr(again.errors[2]) == repr(BOOM)


def test_repr_is_short_and_shows_no_bytes():
    assert repr(batch_of([(0, 1000), (0, 500)])) == "<RangeBatch: 2 ranges, 1,500 bytes>"
    failed = batch_of([(0, 1000), (0, 500)], {0: BOOM})
    assert repr(failed) == "<RangeBatch: 2 ranges, 500 bytes, 1 failed>"


def test_errors_cannot_be_changed_from_outside():
    errors = {0: BOOM}
    batch = batch_of([(0, 1), (1, 1)], errors)
    errors[1] = BOOM
    assert list(batch.errors) == [0]
    with pytest.raises(TypeError):
        batch.errors[1] = BOOM


@pytest.mark.parametrize("where", [-1, 2])
def test_an_error_of_no_range_is_refused(where):
    with pytest.raises(ValueError, match="of 2 ranges"):
        batch_of([(0, 1), (1, 1)], {where: BOOM})


def test_ranges_outside_the_buffer_are_refused():
    with pytest.raises(ValueError, match=r"range 1 .* outside a buffer of 5000 bytes"):
        batch_of([(0, 10), (4999, 2)])
    with pytest.raises(ValueError, match="differ in shape"):
        RangeBatch(DATA, np.array([0]), np.array([1, 2]))


@pytest.mark.parametrize("data", [b"bytes", DATA.astype(np.int16), DATA.reshape(2, -1)])
def test_a_buffer_of_another_kind_is_refused(data):
    with pytest.raises(TypeError, match="uint8"):
        batch_of([(0, 1)], data=data)


def test_an_unknown_on_error_is_named():
    with pytest.raises(ValueError, match="'ignore'"):
        batch_of([(0, 1)]).to_pylist(on_error="ignore")
