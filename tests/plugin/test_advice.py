"""The kernel's readahead of local files: on for short reads in a row, off for ranges and for long reads."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
from pages import drop, needs_nowait, pages_of, tells_what_is_cached

import headrace
from headrace.backends import _linux as linux
from headrace.backends._files import FileBackend
from headrace.single import LOCAL_BLOCK_BYTES

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
        pytest.param(in_a_row(*[LONG] * 8), [OFF], id="long ones in a row"),
        pytest.param(far_apart(LONG), [OFF], id="long ones far apart"),
        pytest.param(in_a_row(*[LONG, SHORT] * 8), [OFF], id="long and short ones in turn"),
        pytest.param(far_apart(LONG) + MANY_SHORT, [OFF, ON], id="long ones, then short ones in a row"),
        pytest.param(far_apart(LONG) + far_apart(SHORT), [OFF], id="long ones, then short ones far apart"),
        pytest.param(far_apart(LONG) + in_a_row(SHORT, 4096), [OFF], id="long ones, then two short ones"),
        pytest.param([*MANY_SHORT, *far_apart(LONG), *MANY_SHORT], [OFF, ON], id="short, long, short"),
        pytest.param((far_apart(LONG) + MANY_SHORT) * 2, [OFF, ON, OFF, ON], id="by turns"),
    ],
)
def test_short_reads_in_a_row_have_readahead_whatever_was_before(
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
