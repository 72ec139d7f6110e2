"""The kernel's readahead of local files: on for reads in a row, off for ranges and beside urgent reads."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pages import drop, needs_nowait, pages_of, tells_what_is_cached

import headrace
from headrace import single
from headrace.backends import _linux as linux
from headrace.backends import _readahead
from headrace.backends._files import SCAN_BYTES, FileBackend
from headrace.backends._readahead import Around
from headrace.core.room import NOBODY, Room
from headrace.core.window import Window
from headrace.jobs import Urgency
from headrace.single import LOCAL_BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20

LONG, SHORT = 300 << 10, 20 << 10
APART = 4
"""Pages from one range to the next: what lies between is more than is read for want of a better plan."""
CONTENT = bytes(range(256)) * (64 << 10 >> 3)
OFF, ON = linux.ADVICE_RANDOM, linux.ADVICE_NORMAL

Reads = list[tuple[int, int]]
"""Where each begins, and its bytes."""


def in_a_row(*lengths: int, start: int = 0) -> Reads:
    return [(start + sum(lengths[:number]), length) for number, length in enumerate(lengths)]


def far_apart(length: int, count: int = 8) -> Reads:
    return [((number + 1) * 37 % count * 2 * length, length) for number in range(count)]


MANY_SHORT = in_a_row(*[SHORT] * 80)


@pytest.fixture
def fs(scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(CONTENT * 4)
    return path


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Descriptors, and what the kernel was told of them; nothing is in the page cache."""
    given: list[tuple[int, int]] = []
    advise = linux.advise

    def note(fd: int, advice: int) -> None:
        given.append((fd, advice))
        advise(fd, advice)

    monkeypatch.setattr(linux, "advise", note)
    monkeypatch.setattr(FileBackend, "probe", lambda *_: None)
    monkeypatch.setattr(FileBackend, "copy", lambda *_: False)
    monkeypatch.setattr(Window, "expects_urgent", False)  # other tests' reads may have been
    monkeypatch.setattr(Room, "expects_before", lambda *_: False)
    return given


def read_all(file: Any, reads: Reads, how: str) -> None:
    for start, length in reads:
        file.seek(start)
        if how == "readinto":
            assert file.readinto(bytearray(length)) == length
        else:
            assert len(getattr(file, how)(length)) == length


@pytest.mark.parametrize("how", ["read", "readinto", "read_buffer"])
@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        pytest.param(MANY_SHORT, [], id="short ones in a row"),
        pytest.param(far_apart(SHORT), [], id="short ones far apart"),
        pytest.param(in_a_row(*[LONG] * 8), [], id="long ones in a row"),
        pytest.param(in_a_row(*[LONG] * 4, start=LONG), [OFF, ON], id="long ones in a row, in the middle"),
        pytest.param([(LONG, LONG), (LONG + 9, LONG)], [OFF, ON], id="long ones that meet"),
        pytest.param(far_apart(LONG), [OFF], id="long ones far apart"),
        pytest.param(in_a_row(*[LONG, SHORT] * 8), [], id="long and short ones in turn"),
        pytest.param(far_apart(LONG) + in_a_row(LONG, LONG), [OFF, ON], id="long ones, then in a row"),
        pytest.param(far_apart(LONG) + MANY_SHORT, [OFF, ON], id="long ones, then short ones in a row"),
        pytest.param(far_apart(LONG) + far_apart(SHORT), [OFF], id="long ones, then short ones far apart"),
        pytest.param(far_apart(LONG) + in_a_row(SHORT, 4096), [OFF], id="long ones, then two short ones"),
        pytest.param([*MANY_SHORT, *far_apart(LONG), *MANY_SHORT], [OFF, ON], id="short, long, short"),
        pytest.param((far_apart(LONG) + MANY_SHORT) * 2, [OFF, ON, OFF, ON], id="by turns"),
    ],
)
def test_reads_in_a_row_have_readahead_whatever_was_before(
    fs: Any, path: Path, advice: list[tuple[int, int]], reads: Reads, expected: list[int], how: str
) -> None:
    """Only where that changes is the kernel told."""
    with fs.open(str(path)) as file:
        read_all(file, reads, how)
    assert [told for _, told in advice] == expected


@pytest.mark.parametrize(
    ("reads", "expected"), [(MANY_SHORT, [OFF, ON]), (far_apart(SHORT), [OFF])], ids=["in a row", "far apart"]
)
def test_short_reads_of_which_others_take_care_are_no_different(
    path: Path, scheduled_mode: str, advice: list[tuple[int, int]], reads: Reads, expected: list[int]
) -> None:
    """In standard mode workers wait for the disk where there is a time-out."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, timeout_s=60)
    with fs.open(str(path), block_size=0) as file:
        read_all(file, far_apart(LONG) + reads, "read")
    assert [told for _, told in advice] == expected


def test_the_kernel_is_told_nothing_of_what_it_has(
    fs: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linux.HAS_NOWAIT or not tells_what_is_cached(tmp_path):
        pytest.skip("what is cached is not told")
    path.read_bytes()
    monkeypatch.setattr(linux, "advise", None)
    with fs.open(str(path)) as file:
        read_all(file, far_apart(LONG) + MANY_SHORT, "read")


@pytest.fixture
def urgent(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether urgent reads are expected: none are, so far."""

    def set_expected(is_expected: bool) -> None:
        monkeypatch.setattr(Window, "expects_urgent", is_expected)
        monkeypatch.setattr(Room, "expects_before", lambda *_: is_expected)

    set_expected(False)
    return set_expected


@pytest.mark.parametrize("length", [LONG, SHORT])
def test_long_reads_beside_urgent_ones_have_no_readahead(
    fs: Any, path: Path, advice: list[tuple[int, int]], urgent: Callable[[bool], None], length: int
) -> None:
    urgent(True)
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(*[length] * 8), "read")
    assert [told for _, told in advice] == ([OFF] if length == LONG else [])


REACH = 900_000


@pytest.fixture
def needs_around(path: Path) -> None:
    """Skip where nothing can be read around the page cache."""
    with path.open("rb") as file:
        try:
            Around(file.fileno(), 0, 0, 0)
        except OSError as error:
            pytest.skip(f"nothing can be read around the page cache here: {error}")


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch, needs_around: None) -> list[tuple[int, int]]:
    """Where reads around the page cache began, and their bytes; `REACH` are to be."""
    noted: list[tuple[int, int]] = []
    read = Around.read

    def note(self: Around, start: int, out: memoryview) -> int:
        noted.append((start, len(out)))
        return read(self, start, out)

    monkeypatch.setattr(Around, "read", note)
    monkeypatch.setattr(linux, "read_ahead_bytes", lambda _device: 0)
    monkeypatch.setattr(_readahead, "SLACK_BYTES", REACH - 2 * FileBackend.defaults.max_op_bytes)
    return noted


@pytest.mark.usefixtures("advice")
@pytest.mark.parametrize("how", ["read", "readinto", "read_buffer"])
@pytest.mark.parametrize("first", [LONG, SHORT])
def test_what_was_read_ahead_is_read_around_when_urgent_reads_come(
    fs: Any, path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None], first: int, how: str
) -> None:
    """Once: by short ops, whatever the offsets, and what comes after it as before."""
    data, at = path.read_bytes(), 2 * first + 77
    with fs.open(str(path), block_size=0) as file:
        read_all(file, in_a_row(first, first + 77), "read")
        assert around == []
        urgent(True)
        got = b""
        for _ in range(4):
            if how == "readinto":
                piece = bytearray(LONG + 1)
                assert file.readinto(piece) == len(piece)
            else:
                piece = getattr(file, how)(LONG + 1)
            got += bytes(piece)
        assert got == data[at : at + 4 * (LONG + 1)]
        assert (around[0][0], sum(length for _, length in around)) == (at, REACH)
        assert max(length for _, length in around) == fs.channel.short_op_bytes
        around.clear()
        assert file.read(LONG) == data[at + len(got) :][:LONG]
    assert around == []
    assert (fs.stats().in_flight_ops, fs.stats().reserved_bytes) == (0, 0)


@pytest.mark.usefixtures("advice")
def test_the_end_of_the_file_is_met_while_it_is_read_around(
    fs: Any, path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None]
) -> None:
    data = path.read_bytes()[: 3 * LONG - 1]
    path.write_bytes(data)
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        urgent(True)
        got = file.read(LONG)
        assert got == data[2 * LONG :]
        assert sum(length for _, length in around) == LONG - 1
        buffer = bytearray(LONG)
        assert file.readinto(buffer) == 0
        path.write_bytes(data[:-1000])  # meanwhile
        assert file.seek(2 * LONG) == file.tell()
        out = np.empty(LONG, np.uint8)
        assert fs._reader.read_into(file._source, str(path), 2 * LONG, out, Urgency()) == LONG - 1001


@pytest.mark.usefixtures("advice")
@pytest.mark.parametrize("what", ["is opened", "is read", "has room"])
def test_where_nothing_can_be_read_around_it_is_read_plainly(
    fs: Any, path: Path, urgent: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    data = path.read_bytes()

    def refuse(*_: Any) -> int:
        if what == "has room":
            raise MemoryError
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    where, name = (linux, "open_around") if what == "is opened" else (Around, "read")
    monkeypatch.setattr(where, name, refuse)
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        urgent(True)
        assert file.read(LONG) == data[2 * LONG : 3 * LONG]
        assert file._source.around is None
        assert file.read() == data[3 * LONG :]


def opened_around(file: Any) -> bool:
    """Whether a second descriptor is there."""
    return file._source.around is not None


@pytest.mark.usefixtures("advice")
def test_what_is_elsewhere_is_not_read_around(
    fs: Any, path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None]
) -> None:
    """Only what the kernel is ahead of, and each byte once; back there it is, unless that was left."""
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG, start=4 << 20), "read")
        urgent(True)
        read_all(file, [(0, LONG), (1 << 20, LONG)], "read")
        assert (around, opened_around(file)) == ([], False)
        read_all(file, [((4 << 20) + 2 * LONG, LONG)], "read")
        assert (len(around), opened_around(file)) == (2, True)
        around.clear()
        read_all(file, [((4 << 20) + 2 * LONG, LONG)], "read")  # once more
        assert (around, opened_around(file)) == ([], False)


@pytest.mark.usefixtures("advice")
@pytest.mark.parametrize("how", ["to its end", "over its end", "not on, as none are expected"])
def test_the_second_descriptor_goes_with_what_it_is_for(
    fs: Any, path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None], how: str
) -> None:
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        urgent(True)
        file.read(LONG)
        assert (len(around), opened_around(file)) == (2, True)
        fds = file._source.around.fds
        assert os.path.sameopenfile(fds[0], file._source.fd)
        urgent("none" not in how)
        file.read(REACH - LONG if how == "to its end" else REACH)
        assert not opened_around(file)
        assert sum(length for _, length in around) == (LONG if "none" in how else REACH)


@pytest.mark.usefixtures("advice")
def test_a_look_elsewhere_does_not_hide_that_the_kernel_is_ahead(
    fs: Any, path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None]
) -> None:
    """Nor does a skip forward."""
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        read_all(file, [(6 << 20, LONG)], "read")
        urgent(True)
        read_all(file, [(2 * LONG + 8, LONG)], "read")
        assert around[0] == (2 * LONG + 8, fs.channel.short_op_bytes)


@pytest.mark.usefixtures("advice")
def test_reads_are_asked_for_by_their_own_priority(
    fs: Any, path: Path, around: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most urgent ones keep their readahead."""
    with fs.open(str(path), priority=-2) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        for urgent_base, is_left in ((-2, False), (-3, True)):
            monkeypatch.setattr(
                Room, "expects_before", lambda _room, base, _now, than=urgent_base: than < base
            )
            read_all(file, [(file.tell(), LONG)], "read")
            assert bool(around) == is_left


@pytest.mark.usefixtures("advice")
def test_a_path_that_has_become_anothers_is_not_read_around(
    fs: Any, path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None]
) -> None:
    """It is the open file that is opened once more, wherever it is by now."""
    data = path.read_bytes()
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        path.unlink()
        os.mkfifo(path)
        urgent(True)
        assert file.read(LONG) == data[2 * LONG : 3 * LONG]
        assert around


@pytest.mark.usefixtures("advice")
def test_all_that_is_read_around_has_the_time_of_one_read(
    path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs: Any = headrace.HeadraceFileSystem(target_protocol="file", scheduler="lite", timeout_s=60)
    left = iter([60.0, 0.0])
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        urgent(True)
        monkeypatch.setattr(single, "left_s", lambda until_s: None if until_s is None else next(left))
        with pytest.raises(headrace.ReadTimeoutError, match="not finished within 60"):
            file.read(LONG)
    assert len(around) == 1
    assert (fs.stats().in_flight_ops, fs.stats().reserved_bytes) == (0, 0)


@pytest.mark.usefixtures("advice")
def test_a_thread_that_may_not_wait_reads_nothing_around(
    path: Path, around: list[tuple[int, int]], urgent: Callable[[bool], None]
) -> None:
    """In standard mode a worker waits for the disk where there is a time-out."""
    fs: Any = headrace.HeadraceFileSystem(target_protocol="file", scheduler="standard", timeout_s=60)
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(LONG, LONG), "read")
        urgent(True)
        read_all(file, in_a_row(LONG, LONG, start=2 * LONG), "read")
    assert around == []


@needs_nowait
@pytest.mark.usefixtures("needs_around")
def test_a_readahead_that_runs_is_left_behind(
    fs: Any, tmp_path: Path, urgent: Callable[[bool], None]
) -> None:
    """The kernel is asked: whatever is behind the last read is not on its way."""
    path = tmp_path / "long.bin"
    path.write_bytes(CONTENT * 32)
    drop(path)
    if not tells_what_is_cached(tmp_path) or pages_of(path):
        pytest.skip("what is cached is not told, or stays")
    urgent(False)
    with fs.open(str(path)) as file:
        for _ in range(8):
            file.read(MIB)
        urgent(True)
        while file.tell() < 48 * MIB:
            file.read(MIB)
        with path.open("rb") as plain:
            beyond = range(file.tell(), len(CONTENT) * 32, mmap.PAGESIZE)
            assert not any(linux.is_cached(plain.fileno(), start, 1) for start in beyond)


@needs_nowait
@pytest.mark.usefixtures("urgent")
@pytest.mark.parametrize("start", [0, LONG, 2 * LONG])
def test_what_the_kernel_reads_ahead_counts_though_the_page_cache_answers(
    fs: Any, path: Path, tmp_path: Path, start: int
) -> None:
    """Else an urgent read would find nothing in flight, and nobody would be told of it."""
    if not tells_what_is_cached(tmp_path):
        pytest.skip("what is cached is not told")
    data, room = path.read_bytes(), fs.channel.scheduler(str(path)).room
    room._ahead = NOBODY
    try:
        with fs.open(str(path), priority=3) as file:
            file._source.followed = LONG
            file.seek(start)
            assert file.read(LONG) == data[start : start + LONG]
        assert room._ahead[0] == (NOBODY[0] if start < LONG else 3)
    finally:
        room._ahead = NOBODY


@pytest.mark.parametrize(("length", "expected"), [(SCAN_BYTES - 1, [OFF]), (SCAN_BYTES, [])])
def test_a_very_long_read_is_a_scan_by_itself(
    fs: Any, tmp_path: Path, advice: list[tuple[int, int]], length: int, expected: list[int]
) -> None:
    path = tmp_path / "long.bin"
    with path.open("wb") as made:
        made.truncate(SCAN_BYTES + 2 * LONG)
    with fs.open(str(path)) as file:
        file.seek(LONG)
        assert len(file.read_buffer(length)) == length
    assert [told for _, told in advice] == expected


def test_hits_between_two_misses_are_of_the_row(
    fs: Any, path: Path, advice: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel was ahead of the first of them, and is told nothing when it no longer is."""
    monkeypatch.setattr(FileBackend, "copy", lambda *_: len(hits) > 0 and hits.pop())
    hits = [False, True, True, False, False]
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(*[LONG] * 5, start=LONG), "read")
    assert hits == []
    assert [told for _, told in advice] == [OFF, ON]


@pytest.mark.parametrize(("end", "expected"), [(None, []), (LONG, [OFF])])
def test_a_call_that_names_its_range_has_no_readahead(
    fs: Any, path: Path, advice: list[tuple[int, int]], end: int | None, expected: list[int]
) -> None:
    assert fs.cat_file(str(path), 0, end) == path.read_bytes()[:end]
    assert [told for _, told in advice] == expected


@pytest.mark.skipif(not hasattr(os, "major"), reason="no devices on this system")
def test_how_far_the_kernel_reads_ahead_is_asked_of_the_device(tmp_path: Path) -> None:
    assert linux.read_ahead_bytes(tmp_path.stat().st_dev) >= 0
    assert linux.read_ahead_bytes(os.makedev(4000, 4000)) == 8 << 20


def scattered(fs: Any, path: Path, how: str, count: int) -> None:
    starts = [number * APART * mmap.PAGESIZE for number in range(count)]
    ends = [start + mmap.PAGESIZE for start in starts]
    if how == "cat_ranges":
        fs.cat_ranges([str(path)] * count, starts, ends)
    else:
        fs.read_ranges(str(path), starts, ends)


@pytest.mark.parametrize("count", [10, 100])
@pytest.mark.parametrize("how", ["cat_ranges", "read_ranges"])
def test_ranges_and_a_scan_of_one_file_do_not_share_advice(
    fs: Any, path: Path, advice: list[tuple[int, int]], how: str, count: int
) -> None:
    with fs.open(str(path)) as file:
        read_all(file, MANY_SHORT[:40], "read")
        scattered(fs, path, how, count)
        read_all(file, MANY_SHORT[40:], "read")
        told_of_scan = [told for fd, told in advice if fd == file._source.fd]
    assert told_of_scan == []
    assert [told for _, told in advice] == [OFF]


@needs_nowait
@pytest.mark.parametrize("count", [10, 100])
@pytest.mark.parametrize("how", ["cat_ranges", "read_ranges"])
def test_ranges_bring_no_pages_but_their_own(
    fs: Any, path: Path, tmp_path: Path, how: str, count: int
) -> None:
    """Beside an open file that is scanned, too."""
    drop(path)
    if not tells_what_is_cached(tmp_path) or pages_of(path):
        pytest.skip("what is cached is not told, or stays")
    with fs.open(str(path)) as file:
        read_all(file, in_a_row(*[SHORT] * 20, start=len(CONTENT)), "read")
        before = pages_of(path)
        scattered(fs, path, how, count)
        assert pages_of(path) - before == count


@needs_nowait
def test_a_scan_brings_pages_before_they_are_asked_for(fs: Any, path: Path, tmp_path: Path) -> None:
    drop(path)
    if not tells_what_is_cached(tmp_path) or pages_of(path):
        pytest.skip("what is cached is not told, or stays")
    reads = [(0, LONG), *in_a_row(*[SHORT] * 20, start=1 << 20)]
    asked = LONG // mmap.PAGESIZE + 20 * SHORT // mmap.PAGESIZE
    with path.open("rb", buffering=0) as plain:
        read_all(plain, reads, "read")
    if pages_of(path) <= asked + LOCAL_BLOCK_BYTES // mmap.PAGESIZE:
        pytest.skip("nothing is read ahead of files here")
    drop(path)
    with fs.open(str(path)) as file:
        read_all(file, reads, "read")
    assert pages_of(path) > asked + LOCAL_BLOCK_BYTES // mmap.PAGESIZE
