"""Local files as programs have them: links, many of them, ends that are none, and moments of misfortune."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import headrace
from headrace import _scan
from headrace.drivers import patience
from headrace.drivers import workers as workers_
from headrace.drivers.workers import Pools
from headrace.errors import UnsizedFileError
from headrace.reader import Reader

DATA = bytes(range(256)) * 40
_numbers = iter(range(1, 1000))


def filesystem(protocol: str = "file", **options: Any) -> headrace.HeadraceFileSystem:
    # A budget of its own gives a test an engine, and so counters and windows, of its own.
    options.setdefault("buffer_bytes", (1 << 36) + next(_numbers))
    return headrace.HeadraceFileSystem(target_protocol=protocol, skip_instance_cache=True, **options)


def count_open(start: str) -> int:
    """Count the descriptors of files whose path begins so."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of this very listing
            count += str(link.readlink()).startswith(start)
    return count


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "data.bin").write_bytes(DATA)
    return str(tmp_path / "data.bin")


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A table of which one file, and a folder with one, are links; another link leads in a circle."""
    table, elsewhere = tmp_path / "table", tmp_path / "elsewhere"
    table.mkdir()
    elsewhere.mkdir()
    for file in (table / "a.parquet", elsewhere / "b.parquet"):
        pq.write_table(pa.table({"x": [1, 2, 3]}), file)
    (table / "b.parquet").symlink_to(elsewhere / "b.parquet")
    (table / "folder").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(table)
    (table / "nowhere.parquet").symlink_to(tmp_path / "nothing")
    return table


def test_links_are_what_they_lead_to(linked: Path, mode: str) -> None:
    fs = filesystem(scheduler=mode)
    names = ["a.parquet", "b.parquet", "folder/b.parquet"]
    files = {name: info for name, info in fs.find(linked, detail=True).items() if info["type"] == "file"}
    assert [name.removeprefix(f"{linked}/") for name in files] == names
    assert len({info["size"] for info in files.values()}) == 1
    one_level = fs.find(linked, maxdepth=1, withdirs=True, detail=True)
    assert one_level[f"{linked}/folder"]["type"] == "directory"
    assert f"{linked}/folder/b.parquet" not in one_level
    (linked / "nowhere.parquet").unlink()
    assert ds.dataset(str(linked), filesystem=fs).count_rows() == 9
    assert ds.dataset([str(linked / name) for name in names], filesystem=fs).count_rows() == 9


def test_a_scan_reads_what_links_lead_to(linked: Path) -> None:
    (linked / "nowhere.parquet").unlink()
    fs = filesystem()
    assert len(_scan._locate(fs, str(linked), None).paths) == 3
    assert len(_scan._locate(fs, f"{linked}/*.parquet", None).paths) == 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.parquet", "b.parquet", "folder-2/plain/c.parquet", "folder/b.parquet"]),
        ("**", ["a.parquet", "b.parquet", "folder-2/plain/c.parquet", "folder/b.parquet"]),
        ("fo*", ["folder-2/plain/c.parquet", "folder/b.parquet"]),
        ("*/*", ["folder-2/plain/c.parquet", "folder/b.parquet"]),
        ("fold?r", ["folder/b.parquet"]),
    ],
)
def test_folders_that_a_glob_matches_may_be_links(linked: Path, pattern: str, names: list[str]) -> None:
    (linked / "folder" / "back").unlink()
    (linked / "folder-2" / "plain").mkdir(parents=True)
    (linked / "folder-2" / "plain" / "c.parquet").touch()
    (linked / ".hidden").symlink_to(".hidden")  # asked where it leads, it is an error
    found = _scan._locate(filesystem(), f"{linked}/{pattern}", None).paths
    assert [name.removeprefix(f"{linked}/") for name in found] == names


@pytest.mark.parametrize("max_op_bytes", ["2MiB", "8MiB", 2**62])
def test_ops_may_be_longer_than_the_window_begins_with(
    path: str, scheduled_mode: str, max_op_bytes: Any
) -> None:
    fs = filesystem(scheduler=scheduled_mode, max_op_bytes=max_op_bytes)
    assert fs.cat_file(path, 0, 10) == DATA[:10]
    assert fs.cat_file(path) == DATA
    assert fs.read_ranges(path, [0, 5000], [10, 5010]).to_pylist() == [DATA[:10], DATA[5000:5010]]


@pytest.mark.parametrize("protocol", ["file", "memory"])
@pytest.mark.parametrize("end", [2**40, 2**62, 2**63 - 1])
def test_an_end_far_behind_the_file_takes_no_memory(
    path: str, scheduled_mode: str, protocol: str, end: int
) -> None:
    if protocol == "memory":
        fsspec.filesystem("memory").pipe_file("/far", DATA)
        path = "/far"
    fs = filesystem(protocol, scheduler=scheduled_mode)
    assert fs.cat_file(path, 0, end) == DATA
    assert fs.cat_file(path, 10_000, end) == DATA[10_000:]
    assert fs.cat_file(path, 20_000, end) == b""
    assert fs.cat_ranges([path, path], [5, 0], [end, 10]) == [DATA[5:], DATA[:10]]
    assert fs.cat_ranges([path], [5], [end]) == [DATA[5:]]
    missing, found = fs.cat_ranges([f"{path}.not", path], [0, 0], [end, end])
    assert (type(missing), found) == (FileNotFoundError, DATA)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="files that the kernel makes up are of Linux")
def test_what_has_no_length_fails_alone_where_all_of_it_is_asked(path: str, scheduled_mode: str) -> None:
    fs = filesystem(scheduler=scheduled_mode)
    odd = [str(Path(path).parent), "/proc/version"]
    for count, first in ((1, 0), (40, 5)):
        ends = [1 << 50, 1 << 50, first + 10] * count
        folder, made_up, found = fs.cat_ranges([*odd, path] * count, [first] * len(ends), ends)[-3:]
        assert (type(folder), type(made_up)) == (IsADirectoryError, UnsizedFileError)
        assert found == DATA[first : first + 10]
        batch = fs.read_ranges([*odd, path] * count, [first] * len(ends), ends)
        assert sorted(batch.errors) == [row for row in range(3 * count) if row % 3 < 2]
        assert batch[3 * count - 1] == DATA[first : first + 10]
    assert fs.cat_ranges(["/proc/version", path], [0, 0], [100 << 20] * 2) == [
        Path("/proc/version").read_bytes(),
        DATA,
    ]


def count_opened(fs: Any, start: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keep count of how many files below `start` are open together."""
    backend, most = type(fs.channel.backend), [0]
    plain_open = backend.open

    def opened(self: Any, name: str, **options: Any) -> Any:
        source = plain_open(self, name, **options)
        most[0] = max(most[0], count_open(start))
        return source

    monkeypatch.setattr(backend, "open", opened)
    return most


def test_many_files_are_open_some_at_a_time(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.reader.MOST_OPEN", 4)
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(40)]
    for number, name in enumerate(paths[:-1]):
        Path(name).write_bytes(DATA[number:])
    most = count_opened(fs, str(tmp_path), monkeypatch)
    asked = [*paths, *reversed(paths)]
    answers = fs.cat_ranges(asked, [0] * 80, [10] * 79 + [None])
    expected = [DATA[number : number + 10] for number in range(39)]
    assert answers[:39] == expected
    assert answers[41:-1] == expected[:0:-1]
    assert answers[-1] == DATA
    assert [type(answers[k]) for k in (39, 40)] == [FileNotFoundError] * 2
    assert 0 < most[0] <= 4
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(asked, 0, 10, on_error="raise")


def test_many_files_without_descriptors_are_one_batch(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.reader.MOST_OPEN", 4)
    monkeypatch.setattr(Reader, "_read_in_blocks", None)
    fs = filesystem("memory", scheduler=scheduled_mode)
    paths = [f"{tmp_path}/{number}" for number in range(10)]
    for number, path in enumerate(paths):
        fs.pipe_file(path, DATA[number:])
    expected = [DATA[number : number + 10] for number in range(10)]
    assert fs.read_ranges(paths, [0] * 10, [10] * 10).to_pylist() == expected
    assert fs.cat_ranges(paths, 0, 10) == expected
    assert asyncio.run(fs._read_ranges(paths, [0] * 10, [10] * 10)).to_pylist() == expected


@pytest.mark.parametrize("how", ["sync", "async", "out", "async out"])
def test_many_files_of_a_batch_are_open_some_at_a_time(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("headrace.reader.MOST_OPEN", 4)
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(10)]
    for number, name in enumerate(paths[:-1]):
        Path(name).write_bytes(DATA[number:])
    asked, starts, ends = [*paths, *reversed(paths)], np.arange(20), np.arange(20) + 10
    most = count_opened(fs, str(tmp_path), monkeypatch)

    def read(out: Any) -> Any:
        if how.startswith("async"):
            return asyncio.run(fs._read_ranges(asked, starts, ends, out=out))
        return fs.read_ranges(asked, starts, ends, out=out)

    out = np.zeros(200, np.uint8) if how.endswith("out") else None
    batch = read(out)
    assert 0 < most[0] <= 4
    answers = batch.to_pylist(on_error="return")
    assert [type(answers[row]) for row in (9, 10)] == [FileNotFoundError] * 2
    of_file, there = [*range(10), *range(9, -1, -1)], [*range(9), *range(11, 20)]
    expected = [DATA[row + of_file[row] :][:10] for row in there]
    assert [answers[row] for row in there] == expected
    if out is not None:
        assert all(np.shares_memory(np.frombuffer(batch[row], np.uint8), out) for row in there)
        with pytest.raises(ValueError, match="out holds 100 bytes, the result needs 180"):
            read(np.zeros(100, np.uint8))


def have_few_descriptors(fs: Any, start: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no more than so many files below `start` open together."""
    backend, lock = type(fs.channel.backend), threading.Lock()
    plain_open = backend.open

    def opened(self: Any, name: str, **options: Any) -> Any:
        with lock:
            if count_open(start) >= most:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)
            return plain_open(self, name, **options)

    monkeypatch.setattr(backend, "open", opened)


async def read_each(fs: Any, paths: list[str]) -> list[Any]:
    return list(await asyncio.gather(*[fs._cat_file(name, 0, 10) for name in paths], return_exceptions=True))


TOGETHER: dict[str, Callable[[Any, list[str]], list[Any]]] = {
    "short": lambda fs, paths: fs.cat_ranges(paths, 0, 10),
    "long": lambda fs, paths: fs.cat_ranges(paths, [0] * len(paths), [1 << 20] * len(paths)),
    "batch": lambda fs, paths: fs.read_ranges(paths, 0, [10] * len(paths)).to_pylist(on_error="return"),
    "awaited": lambda fs, paths: asyncio.run(fs._cat_ranges(paths, 0, 10)),
    "each awaited": lambda fs, paths: asyncio.run(read_each(fs, paths)),
}


@pytest.mark.parametrize("how", TOGETHER)
def test_what_there_are_no_descriptors_for_is_read_when_others_are_closed(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 100)
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(40)]
    for number, name in enumerate(paths[:-1]):
        Path(name).write_bytes(DATA[number:])
    have_few_descriptors(fs, str(tmp_path), 7, monkeypatch)
    answers = TOGETHER[how](fs, paths)
    length = len(DATA) if how == "long" else 10
    assert answers[:-1] == [DATA[number:][:length] for number in range(39)]
    assert isinstance(answers[-1], FileNotFoundError)
    assert not count_open(str(tmp_path))


@pytest.mark.parametrize("how", TOGETHER)
def test_that_nobody_closes_any_is_the_answer_of_each_file(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """After one second for a call, and not for each of its files, nor of those that are open together."""
    monkeypatch.setattr("headrace.reader.MOST_OPEN", 2)
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(5)]
    have_few_descriptors(fs, str(tmp_path), 0, monkeypatch)
    slept: list[float] = []
    monkeypatch.setattr(patience, "sleep", slept.append)
    answers = TOGETHER[how](fs, paths)
    assert [getattr(answer, "errno", None) for answer in answers] == [errno.EMFILE] * 5
    assert 1 <= sum(slept) / (5 if how == "each awaited" else 1) < 1.1


def note_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have no pause take any time but on the clock of who makes it; returns how long each would be."""
    slept: list[float] = []
    now_s = perf_counter()
    monkeypatch.setattr(patience, "sleep", slept.append)
    monkeypatch.setattr(patience, "perf_counter", lambda: now_s + sum(slept))
    return slept


ONE_BY_ONE: dict[str, Callable[[Any, list[str]], list[Any]]] = {
    "whole": lambda fs, paths: list(fs.cat(paths, on_error="return").values()),
    "odd": lambda fs, paths: fs.cat_ranges(paths, [None] * len(paths), [len(DATA)] * len(paths)),
    "awaited": lambda fs, paths: list(asyncio.run(fs._cat(paths, on_error="return")).values()),
}


@pytest.mark.parametrize("how", ONE_BY_ONE)
def test_files_that_are_read_one_by_one_wait_for_descriptors_together(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    slept = note_pauses(monkeypatch)
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(3)]
    for name in paths:
        Path(name).write_bytes(DATA)
    backend = type(fs.channel.backend)
    plain_open, refused = backend.open, [paths[0], paths[1], paths[1]]

    def opened(self: Any, name: str, **options: Any) -> Any:
        if name in refused:
            refused.remove(name)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)
        return plain_open(self, name, **options)

    monkeypatch.setattr(backend, "open", opened)
    assert ONE_BY_ONE[how](fs, paths) == [DATA] * 3
    assert slept == [0.001, 0.002, 0.004]
    have_few_descriptors(fs, str(tmp_path), 0, monkeypatch)
    slept.clear()
    answers = ONE_BY_ONE[how](fs, paths)
    assert [getattr(answer, "errno", None) for answer in answers] == [errno.EMFILE] * 3
    assert 1 <= sum(slept) < 1.1


@pytest.mark.parametrize("how", ["short", "long", "batch", "awaited", "whole", "odd"])
def test_no_call_waits_for_descriptors_longer_than_it_may_last(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    slept = note_pauses(monkeypatch)
    monkeypatch.setattr(patience, "PATIENCE_S", 5000)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 100)
    fs = filesystem(scheduler=scheduled_mode, timeout_s=1000)
    have_few_descriptors(fs, str(tmp_path), 0, monkeypatch)
    answers = (ONE_BY_ONE | TOGETHER)[how](fs, [str(tmp_path / name) for name in "ab"])
    assert [getattr(answer, "errno", None) for answer in answers] == [errno.EMFILE] * 2
    assert 1000 <= sum(slept) < 2000


def test_a_call_has_a_part_of_few_descriptors(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(40)]
    for name in paths:
        Path(name).write_bytes(DATA)
    monkeypatch.setattr("headrace.reader.soft_limit", {"RLIMIT_NOFILE": 100}.get)
    most = count_opened(fs, str(tmp_path), monkeypatch)
    assert fs.cat_ranges(paths, 0, 10) == [DATA[:10]] * 40
    assert most == [25]


@pytest.mark.parametrize(("read", "times"), [("cat_ranges", 2), ("read_ranges", 1)])
def test_the_system_is_not_asked_again_what_it_grants(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, read: str, times: int
) -> None:
    fs = filesystem(scheduler=scheduled_mode)
    paths = [str(tmp_path / f"{number}.bin") for number in range(20)]
    for name in paths:
        Path(name).write_bytes(DATA)
    fs.cat_file(paths[0])
    asked: list[str] = []
    monkeypatch.setattr("headrace.reader.soft_limit", asked.append)
    assert [bytes(data) for data in getattr(fs, read)(paths, [0] * 20, [10] * 20)] == [DATA[:10]] * 20
    assert asked == ["RLIMIT_NOFILE"] * times


def test_an_error_holds_no_files_open(path: str, scheduled_mode: str) -> None:
    fs = filesystem(scheduler=scheduled_mode)
    answers = fs.cat_ranges([path, f"{path}.not"] * 20, [0] * 40, [10] * 40)
    assert isinstance(answers[1], FileNotFoundError)
    assert not count_open(path)


def test_a_read_that_was_taken_holds_no_files_open(path: str, scheduled_mode: str) -> None:
    read = filesystem(scheduler=scheduled_mode).submit_ranges(path, [0], [10])
    assert read.result().to_pylist() == [DATA[:10]]
    assert not count_open(path)
    assert read.done()
    assert not read.cancel()
    assert read.result().to_pylist() == [DATA[:10]]


def test_a_read_that_several_threads_take_counts_once(path: str, scheduled_mode: str) -> None:
    fs = filesystem(scheduler=scheduled_mode)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(50):
            read = fs.submit_ranges(path, [0, 100], [10, 110])
            taken = [threads.submit(read.result) for _ in range(4)]
            assert {tuple(batch.result().to_pylist()) for batch in taken} == {(DATA[:10], DATA[100:110])}
    stats = fs.stats()
    assert stats.requests_consumed == stats.requests_submitted


@pytest.mark.parametrize("folder", ["no\0name", "\ud800", "nothing"])
def test_a_folder_that_is_none_fails_its_own_ranges(path: str, scheduled_mode: str, folder: str) -> None:
    fs = filesystem(scheduler=scheduled_mode)
    wrong = f"{Path(path).parent}/{folder}/x"
    for count in (1, 20):
        answers = fs.cat_ranges([wrong, path] * count, [0, 0] * count, [10, 10] * count)
        assert answers[1] == DATA[:10]
        assert isinstance(answers[0], ValueError | FileNotFoundError)


def test_positions_are_whole_numbers(path: str, scheduled_mode: str) -> None:
    with filesystem(scheduler=scheduled_mode).open(path) as file:
        for kind in (np.uint8, np.int16, np.uint32, np.uint64):
            assert file.seek(kind(100)) == 100
            assert type(file.tell()) is int
            assert file.read(4) == DATA[100:104]
        file.seek(np.uint64(len(DATA) + 5))
        assert file.read(4) == b""
        with pytest.raises(TypeError):
            file.seek(1.5)


def test_a_thread_that_could_not_be_started_is_started_later(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There were too many for a moment: who waits looks after it."""
    fs = filesystem(scheduler="standard", timeout_s=30)
    monkeypatch.setattr(fs.channel.driver, "pools", Pools(2, "test-disk"))
    monkeypatch.setattr(fs.channel.backend, "start", lambda _ops, lo, hi: np.arange(lo, hi))
    monkeypatch.setattr(fs.channel.backend, "probe_rows", lambda *_, **__: False)
    monkeypatch.setattr(fs.channel.backend, "is_bound", lambda _ops: False)
    starts: list[threading.Thread] = []
    start: Callable[[threading.Thread], None] = workers_.start_thread

    def refuse_once(thread: threading.Thread) -> None:
        starts.append(thread)
        if len(starts) == 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(workers_, "start_thread", refuse_once)
    found = fs.read_ranges(path, list(range(0, 4000, 100)), list(range(10, 4010, 100)))
    assert found.to_pylist() == [DATA[at : at + 10] for at in range(0, 4000, 100)]
    assert len(starts) > 1
