"""Small reads and lines of an open local file: right in any order, no older than Python's, and cheap.

What they cost is counted in calls of Python's and in ops, not in seconds.
"""

from __future__ import annotations

import io
import itertools
import pickle
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pages import needs_nowait

import headrace
from headrace import HeadraceFile
from headrace.drivers.engine import Engine

LINES = [b"%d,%s\n" % (number, b"x" * (number % 97)) for number in range(5_000)]
CONTENT = b"".join(LINES)


@pytest.fixture
def fs(scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lines.csv"
    path.write_bytes(CONTENT)
    return path


# -- any order


def _read_into(file: Any, length: int) -> bytes:
    out = bytearray(length)
    got = file.readinto(out)
    return bytes(out[:got])


def _some_of_a_loop(file: Any, count: int) -> list[bytes]:
    return list(itertools.islice(file, count))


def _a_loop_that_is_mixed(file: Any, count: int) -> list[Any]:
    """Whatever else is done within a loop, the loop goes on from there."""
    found: list[Any] = []
    for line in itertools.islice(file, count):
        found.append(line)
        kind = len(line) % 5
        if kind == 0:
            found.append(file.tell())
        elif kind == 1:
            found.append(file.readline())
        elif kind == 2:
            found.append(file.seek(3, io.SEEK_CUR))
        elif kind == 3:
            found.append(file.read(5))
    return found


@pytest.mark.parametrize("block_size", [0, 7, 100, 3_000, None])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_reads_lines_and_loops_is_right(
    fs: Any, path: Path, block_size: int | None, seed: int
) -> None:
    content = CONTENT[:30_000] + b"a last line without an end"
    path.write_bytes(content)
    draw, plain = random.Random(seed), io.BytesIO(content)
    steps: list[Callable[[Any, int], Any]] = [
        lambda file, n: file.read(n),
        lambda file, n: file.read(n % 20),
        lambda file, n: file.readline(),
        lambda file, n: file.readline(n % 50),
        lambda file, n: file.seek(n * 10),
        lambda file, n: file.seek(max(n - 1_500, -file.tell()), io.SEEK_CUR),
        lambda file, n: file.readlines(n),
        lambda file, n: next(file, None),
        lambda file, n: _some_of_a_loop(file, n % 40),
        lambda file, n: _a_loop_that_is_mixed(file, n % 40),
        _read_into,
    ]
    with fs.open(str(path), block_size=block_size) as file:
        for _ in range(400):
            step, number = draw.choice(steps), draw.randrange(3_100)
            assert step(file, number) == step(plain, number)
            assert file.tell() == plain.tell()


def test_two_loops_share_the_lines(fs: Any, path: Path) -> None:
    with fs.open(str(path)) as file:
        pairs = list(zip(file, file, strict=True))
    assert list(itertools.chain.from_iterable(pairs)) == LINES


def test_threads_share_the_lines(fs: Any, path: Path) -> None:
    with fs.open(str(path), block_size=1_000) as file, ThreadPoolExecutor(4) as pool:
        shared = iter(file)
        loops = [lambda: list(file), lambda: list(shared)] * 2
        found = [future.result() for future in [pool.submit(loop) for loop in loops]]
    assert sorted(itertools.chain.from_iterable(found)) == sorted(LINES)


def test_a_loop_ends_with_an_error_where_its_file_is_closed(fs: Any, path: Path) -> None:
    file = fs.open(str(path))
    lines = iter(file)
    assert [next(lines), next(lines), next(lines)] == LINES[:3]
    file.close()
    with pytest.raises(ValueError, match="closed"):
        next(lines)


@pytest.mark.parametrize("read", [next, lambda lines: lines.readline()])
def test_a_loop_goes_on_after_an_error(
    fs: Any, path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is lost of a read that was late, nor torn where one lies in two blocks."""
    plain, late = HeadraceFile._bytes_at, iter([True])

    def bytes_at(file: HeadraceFile, start: int, wanted: int) -> bytes:
        if start > 5_000 and next(late, False):
            raise TimeoutError("late")
        return plain(file, start, wanted)

    monkeypatch.setattr(HeadraceFile, "_bytes_at", bytes_at)
    found: list[bytes] = []
    with fs.open(str(path), block_size=1_000) as file:
        lines = iter(file) if read is next else file

        def read_on() -> None:
            while len(found) < len(LINES):
                found.append(read(lines))

        with pytest.raises(TimeoutError):
            read_on()
        read_on()
    assert found == LINES


def test_a_file_in_a_loop_says_where_it_is(fs: Any, path: Path) -> None:
    with fs.open(str(path)) as file:
        here = len(b"".join(itertools.islice(file, 100)))
        assert f"at {here}>" in repr(file)
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.readline() == LINES[100]
        assert file.readline() == LINES[100]


# -- what is written meanwhile


def test_a_file_that_grows_is_read_on(fs: Any, path: Path) -> None:
    """By whatever reads small: what was the end, in the middle of a line, is asked for again."""
    reads: list[Callable[[Any], bytes]] = [
        lambda file: file.read(100),
        lambda file: file.readline(),
        b"".join,
        lambda file: file.read1(100),
        lambda file: _read_into(file, 100),
    ]
    path.write_bytes(b"begun")
    with fs.open(str(path)) as file, path.open("rb", buffering=0) as plain:
        for number in range(3):
            for read in reads:
                with path.open("ab") as appended:
                    appended.write(b"%d more" % number)
                assert read(file) == plain.read()
                assert read(file) == b""


@pytest.mark.parametrize("read", [HeadraceFile.read, _read_into, HeadraceFile.readline, HeadraceFile.read1])
def test_what_is_no_longer_in_pythons_buffer_is_read_anew(fs: Any, path: Path, read: Any) -> None:
    """Nor in that of another reader of small parts: such a program sees here what it sees without us."""
    with fs.open(str(path)) as file:
        file.readline()
        read(file, 16)  # a long block is at hand
        path.write_bytes(b"n" * len(CONTENT))
        for start in (70_000, 50_000, 80_000):
            file.seek(start)
            assert read(file, 16) == b"n" * 16


def test_text_is_no_older_than_pythons(fs: Any, path: Path) -> None:
    with fs.open(str(path), "r") as text:
        text.read(20_000)
        path.write_bytes(b"n" * 100 + b"\n" + CONTENT[101:])
        text.seek(0)
        assert text.readline() == "n" * 100 + "\n"


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_a_small_file_that_is_written_anew_in_place_is_read_anew(fs: Any, path: Path, mode: str) -> None:
    """As programs ask for a status again and again: in text mode nothing is left in Python's buffer."""
    path.write_bytes(b"step 1\nmore\n")

    def status(file: Any) -> str:
        return str(file.readline()) if mode == "r" else file.read1(7).decode()

    with fs.open(str(path), mode) as file:
        for step in range(3):
            with path.open("r+b") as written:
                written.write(b"step %d" % step)
            file.seek(0)
            assert status(file) == f"step {step}\n"


def test_a_seek_to_the_end_forgets_what_was_read(fs: Any, path: Path) -> None:
    """As it does in Python's own files: who asks how long a file is now wants to see it as it is now."""
    for content in (b"step 1\n", CONTENT):
        path.write_bytes(content)
        with fs.open(str(path)) as file:
            assert file.read(7) == content[:7]
            with path.open("r+b") as written:
                written.write(b"step 2\n")
            assert file.seek(0, io.SEEK_END) == len(content)
            file.seek(0)
            assert file.read(7) == b"step 2\n"


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda file: file.seek(90_000) and file.read(16),
        lambda file: file.seek(3) and file.read(10_000),
        lambda file: file.seek(90_000) and file.read_buffer(16),
        lambda file: file.seek(90_000) and file.read(200_000),
    ],
    ids=["far", "longer", "buffer", "long"],
)
def test_a_block_is_forgotten_where_something_else_is_read(fs: Any, path: Path, elsewhere: Any) -> None:
    with fs.open(str(path)) as file:
        for start in (1_000, 900, 1_100):
            file.seek(start)
            assert file.read(16) == CONTENT[start : start + 16]
        path.write_bytes(b"n" * len(CONTENT))
        elsewhere(file)
        file.seek(1_000)
        assert file.read(16) == b"n" * 16


# -- what it costs


def _calls(function: Callable[[], object]) -> int:
    """Count the calls of Python's functions."""
    count = 0

    def note(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def _seek_and_read(file: Any) -> None:
    for start in range(0, 50_000, 100):
        file.seek(start)
        assert file.read(16) == CONTENT[start : start + 16]


def test_small_work_takes_few_calls(fs: Any, path: Path) -> None:
    with fs.open(str(path)) as file:
        assert _calls(lambda: [None for _ in file]) < len(LINES) / 10
        file.seek(0)
        assert _calls(lambda: [file.readline() for _ in range(500)]) < 500 * 3
        assert _calls(lambda: [file.read(10) for _ in range(500)]) < 500 * 4
        assert _calls(lambda: _seek_and_read(file)) < 500 * 7


def test_a_scattered_readinto_takes_hardly_more_calls_than_a_read(fs: Any, path: Path) -> None:
    """As HDF5 does: no plan, and no request of its own."""
    starts = range(20_000, 200_000, 9_000)

    def scattered(read: Callable[[Any, int], bytes], file: Any) -> None:
        for start in starts:
            file.seek(start)
            assert read(file, 1_000) == CONTENT[start : start + 1_000]

    with fs.open(str(path)) as file:
        allowed = _calls(lambda: scattered(headrace.HeadraceFile.read, file)) + 5 * len(starts)
        assert _calls(lambda: scattered(_read_into, file)) <= allowed


def test_small_reads_close_to_one_another_take_few_ops(fs: Any, path: Path) -> None:
    with fs.open(str(path)) as file:
        before = fs.stats().ops_completed
        _seek_and_read(file)
        assert fs.stats().ops_completed - before < 500 / 10


def test_small_reads_far_apart_are_of_what_is_asked(fs: Any, path: Path) -> None:
    with fs.open(str(path)) as file:
        before = fs.stats().bytes_completed
        for start in range(20_000, 200_000, 9_000):
            file.seek(start)
            assert file.read(16) == CONTENT[start : start + 16]
        assert fs.stats().bytes_completed - before == 20 * 16


def test_many_files_are_not_handed_over_one_by_one(
    fs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take the way to the loop thread and back; a lone one in standard mode does."""
    paths = [str(tmp_path / f"{number}.bin") for number in range(5)]
    for number, one in enumerate(paths):
        Path(one).write_bytes(b"%d" % number * 5_000)
    driver = fs.channel.driver
    call, handed = driver.call, []

    def noted(function: Callable[..., Any], *args: Any) -> Any:
        handed.append(function)
        return call(function, *args)

    monkeypatch.setattr(driver, "call", noted)
    assert fs.cat(paths) == {one: Path(one).read_bytes() for one in paths}
    assert fs.cat_ranges(paths[:1], [5], [9]) == [b"0000"], "a list of one is no other than one of two"
    assert handed == []
    assert fs.cat_file(paths[0]) == b"0" * 5_000
    assert len(handed) == driver.waits_elsewhere


@needs_nowait
def test_a_lone_read_that_misses_takes_two_sections(
    fs: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admitted in one, complete and handed over in the other."""
    monkeypatch.setattr(fs.channel.backend, "probe", lambda *_: None)
    enter, sections = Engine.__enter__, []

    def entered(engine: Engine) -> Any:
        if threading.current_thread() is threading.main_thread():
            sections.append(engine)
        return enter(engine)

    before = fs.stats()
    with fs.open(str(path), block_size=0) as file, monkeypatch.context() as patch:
        patch.setattr(Engine, "__enter__", entered)
        assert file.read(1_000) == CONTENT[:1_000]
    after = fs.stats()
    assert len(sections) == 2
    assert after.requests_consumed - before.requests_consumed == 1
    assert after.bytes_delivered - before.bytes_delivered == 1_000
    assert (after.in_flight_ops, after.reserved_bytes) == (0, 0)
