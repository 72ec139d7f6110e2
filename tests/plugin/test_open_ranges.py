"""Ranges of an open file: `read_ranges` and its twins are given the file instead of its path."""

from __future__ import annotations

import asyncio
import codecs
import gc
import gzip
import io
import os
import threading
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from targets import CONTENT, OTHER, SIZE, Target, at_rest

import headrace
from headrace.backends.fsspec_sync import instance_lock

STARTS = [7, 299_000, 0, 120_000, 120_000, 50]
ENDS = [12, 300_001, 70_000, 120_100, 120_100, 50]
EXPECTED = [CONTENT[start:end] for start, end in zip(STARTS, ENDS, strict=True)]


def test_its_ranges_are_read_and_its_position_stays(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    with fs.open(target.big) as file:
        assert file.read(3) == CONTENT[:3]
        assert fs.read_ranges(file, STARTS, ENDS).to_pylist() == EXPECTED
        assert fs.submit_ranges(file, STARTS, ENDS).result(60).to_pylist() == EXPECTED
        assert asyncio.run(fs._read_ranges(file, STARTS, ENDS)).to_pylist() == EXPECTED
        assert (file.tell(), file.read(3)) == (3, CONTENT[3:6])
    assert at_rest(fs)


def test_it_ends_where_the_file_does(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    with fs.open(target.big) as file:
        far = SIZE + 1 if fs.mode == "off" else 1 << 45  # more than there is memory for
        starts, ends = [SIZE - 4, SIZE, SIZE + 9, 3, 0], [SIZE + 4, SIZE + 4, SIZE + 12, 5, far]
        batch = fs.read_ranges(file, starts, ends)
        assert batch.to_pylist() == [CONTENT[-4:], b"", b"", CONTENT[3:5], CONTENT]
        assert len(fs.read_ranges(file, [], [])) == 0
    assert at_rest(fs)


def test_it_is_read_into_a_buffer(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    with fs.open(target.big) as file:
        for read in (fs.read_ranges, lambda *given, out: asyncio.run(fs._read_ranges(*given, out=out))):
            out = np.zeros(1_024, np.uint8)
            batch = read(file, [100, 0], [110, 10], out=out)
            assert batch.to_pylist() == [CONTENT[100:110], CONTENT[:10]]
            assert all(np.shares_memory(np.frombuffer(view, np.uint8), out) for view in batch)
            with pytest.raises(ValueError, match="out holds 5 bytes"):
                read(file, [100, 0], [110, 10], out=np.zeros(5, np.uint8))


def test_what_makes_no_sense_is_refused(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    file = fs.open(target.big)
    with pytest.raises(ValueError, match="range 1: end 3 is before start 5"):
        fs.read_ranges(file, [0, 5], [4, 3])
    with pytest.raises(TypeError, match="starts must be integers"):
        fs.read_ranges(file, [0.5], [4])
    with fs.open(target.big, "r", encoding="latin-1") as text, pytest.raises(TypeError, match="binary mode"):
        fs.read_ranges(text, [0], [4])
    file.close()
    if (target.protocol, fs.mode) == ("memory", "off"):
        return  # fsspec's own, which never closes
    for read in (fs.read_ranges, fs.submit_ranges, lambda *given: asyncio.run(fs._read_ranges(*given))):
        with pytest.raises(ValueError, match="closed"):
            read(file, [0], [4])


def test_threads_share_it(target: Target, options: dict[str, object]) -> None:
    """Beside reads at its position, which their ranges leave alone."""
    fs = target.headrace(**options)
    rounds = 4 if target.protocol == "s3" else 20
    with fs.open(target.big) as file, ThreadPoolExecutor(6) as pool:
        one_at_a_time = options["scheduler"] == "off"  # the wrapped filesystem's file has one position
        found = [
            pool.submit(fs.read_ranges, file, STARTS, ENDS) for _ in range(0 if one_at_a_time else rounds)
        ]
        got = b"".join(iter(lambda: file.read(1_000), b""))
        assert got == CONTENT
        assert all(future.result().to_pylist() == EXPECTED for future in found)
    assert at_rest(fs)


def test_what_was_submitted_outlives_the_file(disk: Target, scheduled_mode: str) -> None:
    """Its descriptor is open until the last range is there, and not its number another file's."""
    fs = disk.headrace(scheduler=scheduled_mode)
    file = fs.open(disk.big)
    fd = file._source.fd
    read = fs.submit_ranges(file, STARTS, ENDS)
    file.close()
    with open(disk.small, "rb") as other:  # noqa: PTH123
        assert other.fileno() != fd
        assert read.result(60).to_pylist() == EXPECTED
    del file, read
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_file_that_was_replaced_is_the_one_that_was_opened(
    tmp_path: Path, options: dict[str, object]
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old" * 100)
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    with fs.open(path) as file:
        (tmp_path / "new").write_bytes(b"new" * 100)
        (tmp_path / "new").replace(path)
        assert fs.read_ranges(file, [0, 3], [3, 6]).to_pylist() == [b"old", b"old"]
        assert fs.read_ranges(path, [0, 3], [3, 6]).to_pylist() == [b"new", b"new"]


def test_its_priority_is_that_of_its_ranges(disk: Target, scheduled_mode: str) -> None:
    fs = disk.headrace(scheduler=scheduled_mode, local_backend="pread")
    with fs.open(disk.big, priority=-3) as file, headrace.priority(5):
        for given, expected in ({}, -3), ({"priority": 2}, 2):
            with headrace.trace() as timeline:
                fs.submit_ranges(file, [0], [200_000], **given).result(60)
            assert {event.priority.base for event in timeline.events} == {expected}


def test_files_that_are_not_headraces(target: Target, options: dict[str, object], tmp_path: Path) -> None:
    fs = target.headrace(**options)
    ends = [end + 1 for end in STARTS]
    expected = [CONTENT[start : start + 1] for start in STARTS]
    (tmp_path / "plain").write_bytes(CONTENT)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(CONTENT))
    with (tmp_path / "plain").open("rb") as plain, fsspec.open(tmp_path / "plain") as of_fsspec:
        unpacked = headrace.wrap(fsspec.filesystem("file"), **options).open(
            tmp_path / "packed.gz", compression="gzip"
        )
        for file in (plain, of_fsspec, unpacked):
            file.seek(11)
            assert fs.read_ranges(file, STARTS, ends).to_pylist() == expected
            assert fs.submit_ranges(file, STARTS, ends).result(60).to_pylist() == expected
            assert asyncio.run(fs._read_ranges(file, STARTS, ends)).to_pylist() == expected
            assert file.tell() == 11


class Theirs(io.RawIOBase):
    """A file of another library's, which returns `most` bytes of what is asked for, and fails at 5."""

    def __init__(self, most: int = 1) -> None:
        self.most, self.position, self.seeks = most, 0, list[int]()

    def tell(self) -> int:
        return self.position

    def seek(self, to: int, _whence: int = 0) -> int:
        self.seeks.append(to)
        self.position = to
        return to

    def read(self, length: int = -1) -> bytes:
        if self.position == 5:
            raise OSError(5, "broken")
        found = CONTENT[self.position : self.position + min(length, self.most)]
        self.position += len(found)
        return found


def test_a_range_that_fails_has_its_own_error(options: dict[str, object]) -> None:
    """Of a file that is not headrace's; it is read in the order of its offsets, each range to its end."""
    fs = headrace.HeadraceFileSystem(target_protocol="memory", **options)
    file: Any = Theirs()
    file.position = 3
    batch = fs.read_ranges(file, [70, 5, 0], [90, 6, 2])
    assert batch.to_pylist(on_error="return")[::2] == [CONTENT[70:90], CONTENT[:2]]
    assert list(batch.errors) == [1]
    error = batch.errors[1]
    assert str(error) == "[Errno 5] broken"
    assert error.__traceback__ is None
    assert "read of 'Theirs', bytes 5 to 6" in error.__notes__
    assert file.seeks == [0, 5, 70, 3]


def test_text_of_a_file_that_does_not_say_so_is_an_error(options: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words")
    fs = headrace.HeadraceFileSystem(target_protocol="memory", **options)
    with codecs.open(str(tmp_path / "text"), encoding="utf-8") as file:
        found = fs.read_ranges(file, [5, 0], [9, 0])
    assert [type(error) for error in found.errors.values()] == [TypeError]
    assert bytes(found[1]) == b""


def test_no_error_tells_a_password(options: dict[str, object]) -> None:
    file: Any = Theirs()
    file.path = "https://somebody:secret@example.com/file"
    fs = headrace.HeadraceFileSystem(target_protocol="memory", **options)
    (error,) = fs.read_ranges(file, [5], [6]).errors.values()
    assert any("example.com" in note for note in error.__notes__)
    assert "secret" not in str([error, error.__notes__])


def test_a_position_that_cannot_be_set_again_costs_no_bytes(options: dict[str, object]) -> None:
    class Stream(Theirs):
        def seek(self, to: int, _whence: int = 0) -> int:
            if to < self.position:
                raise ValueError("a stream")
            return super().seek(to)

    fs = headrace.HeadraceFileSystem(target_protocol="memory", **options)
    assert fs.read_ranges(Stream(9), [20, 8], [22, 11]).to_pylist() == [CONTENT[20:22], CONTENT[8:11]]


def test_awaited_ranges_of_one_file_do_not_mix(options: dict[str, object], tmp_path: Path) -> None:
    """Nor are they those of arrays that the caller changes meanwhile."""
    (tmp_path / "plain").write_bytes(CONTENT)
    fs = headrace.HeadraceFileSystem(target_protocol="memory", **options)

    async def read(file: Any) -> list[Any]:
        starts = np.arange(0, 100_000, 1_000)
        ends = starts + 500
        calls = [asyncio.create_task(fs._read_ranges(file, starts, ends)) for _ in range(8)]
        await asyncio.sleep(0)
        starts += 77
        ends += 177
        return [batch.to_pylist() for batch in await asyncio.gather(*calls)]

    with (tmp_path / "plain").open("rb") as file:
        file.seek(11)
        found = asyncio.run(read(file))
        assert file.tell() == 11
    assert found == [[CONTENT[start : start + 500] for start in range(0, 100_000, 1_000)]] * 8


@pytest.mark.parametrize("protocol", ["file", "zip", "recording", "arecording"])
def test_what_was_submitted_keeps_its_file(
    targets: dict[str, Target], protocol: str, scheduled_mode: str
) -> None:
    """Nobody else need have it; once its bytes are taken nobody has."""
    fs = targets[protocol].headrace(scheduler=scheduled_mode)
    file = fs.open(targets[protocol].big)
    gone = weakref.ref(file)
    read = fs.submit_ranges(file, STARTS, ENDS)
    del file
    gc.collect()
    assert read.result(60).to_pylist() == EXPECTED
    gc.collect()
    assert gone() is None


def test_a_file_of_another_filesystem(targets: dict[str, Target], options: dict[str, object]) -> None:
    """It is read where it belongs, and as urgently as it was opened."""
    fs, other = targets["memory"].headrace(**options), targets["recording"].headrace(**options)
    with other.open(targets["recording"].big, priority=4) as file:
        assert fs.read_ranges(file, STARTS, ENDS).to_pylist() == EXPECTED
    assert at_rest(fs)
    assert at_rest(other)


def test_a_file_inside_an_archive(options: dict[str, object], tmp_path: Path) -> None:
    """Read by its own methods, which read the archive through headrace."""
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("packed.gz", gzip.compress(OTHER))
    fs = headrace.HeadraceFileSystem(
        target_protocol="zip", target_options={"fo": str(tmp_path / "outer.zip")}, **options
    )
    with fs.open("packed.gz", compression="gzip") as file:
        assert fs.read_ranges(file, [5, 0], [9, 2]).to_pylist() == [OTHER[5:9], OTHER[:2]]
    assert at_rest(fs)


def test_a_file_of_anothers_waits_for_no_filesystem(
    targets: dict[str, Target], scheduled_mode: str, tmp_path: Path
) -> None:
    """Somebody else may be reading that, one thread at a time, and have to wait for this one."""
    (tmp_path / "plain").write_bytes(CONTENT)
    fs = targets["zip"].headrace(scheduler=scheduled_mode)
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with instance_lock(fs.target):
            is_held.set()
            may_go.wait(60)

    async def read(file: Any) -> Any:
        return await asyncio.wait_for(fs._read_ranges(file, STARTS, ENDS), 30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert is_held.wait(60)
        with (tmp_path / "plain").open("rb") as file:
            assert fs.read_ranges(file, STARTS, ENDS).to_pylist() == EXPECTED
            assert asyncio.run(read(file)).to_pylist() == EXPECTED
    finally:
        may_go.set()
        holder.join()


@pytest.mark.parametrize("protocol", ["file", "recording", "arecording"])
def test_a_forked_child_reads_ranges_of_its_parents_file(
    targets: dict[str, Target], protocol: str, scheduled_mode: str
) -> None:
    target = targets[protocol]
    fs = target.headrace(scheduler=scheduled_mode)
    with fs.open(target.big) as file:
        assert fs.read_ranges(file, STARTS, ENDS).to_pylist() == EXPECTED
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = int(fs.read_ranges(file, STARTS, ENDS).to_pylist() != EXPECTED)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
