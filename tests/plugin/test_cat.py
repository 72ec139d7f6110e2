"""fsspec's contracts of ``cat_ranges`` and ``cat``, all of them, in every mode."""

from __future__ import annotations

import asyncio
import gzip
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import recording
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from targets import CONTENT, LOG, OTHER, SIZE, Target, at_rest, outcome

import headrace
from headrace import reader, single
from headrace.errors import ReadTimeoutError
from headrace.reader import LONG_BYTES
from headrace.types import Ops


def test_cat_ranges(target: Target, options: dict[str, object]) -> None:
    paths = [target.big, target.small, target.big]
    got = target.headrace(**options).cat_ranges(paths, [0, 5, 9], [10, 15, 100_000])
    assert got == [CONTENT[:10], OTHER[5:15], CONTENT[9:100_000]]
    assert {type(item) for item in got} == {bytes}


def test_cat_ranges_broadcasts_integers(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    paths = [target.big, target.small]
    assert fs.cat_ranges(paths, 3, 20) == [CONTENT[3:20], OTHER[3:20]]
    assert fs.cat_ranges(paths, [0, 5], 20) == [CONTENT[:20], OTHER[5:20]]
    assert fs.cat_ranges(paths, 3, [10, 20]) == [CONTENT[3:10], OTHER[3:20]]


@pytest.mark.parametrize("bounds", [(None, 10), (10, None), (-10, None), (None, None), (5, -5)])
def test_cat_ranges_with_open_bounds(
    target: Target, options: dict[str, object], bounds: tuple[int | None, int | None]
) -> None:
    got = target.headrace(**options).cat_ranges([target.big] * 2, bounds[0], bounds[1])
    assert got == [CONTENT[bounds[0] : bounds[1]]] * 2


def test_cat_ranges_mixes_open_and_closed_bounds(target: Target, options: dict[str, object]) -> None:
    starts, ends = [None, 5, -7, 100], [10, None, None, 200]
    got = target.headrace(**options).cat_ranges([target.small] * 4, starts, ends)
    assert got == [OTHER[a:b] for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("first", [0, -7], ids=["plain", "odd"])
@pytest.mark.parametrize("most", [None, 1], ids=["in one", "in blocks of files"])
def test_bounds_of_a_frame_go_by_position(
    target: Target,
    options: dict[str, object],
    first: int,
    most: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not by the labels of its rows, which were sorted, or chosen."""
    if most is not None:
        monkeypatch.setattr(reader, "MOST_OPEN", most)
    frame = pd.DataFrame({"start": [40, 30, 20, 10, first], "end": [45, 36, 27, 18, 50_000]})[::-1]
    names = [target.small, target.big, target.small, target.big, target.big]
    got = target.headrace(**options).cat_ranges(names, frame["start"], frame["end"])
    whole = {target.small: OTHER, target.big: CONTENT}
    asked = zip(names, frame["start"].tolist(), frame["end"].tolist(), strict=True)
    assert got == [whole[name][start:end] for name, start, end in asked]


@pytest.mark.parametrize(
    "bounds", [(np.uint16(100), 70_000), (np.uint64(5), np.int64(10)), (np.int8(-5), None)]
)
def test_narrow_integers_of_numpys_are_integers(
    target: Target, scheduled_mode: str, bounds: tuple[Any, Any]
) -> None:
    fs = target.headrace(scheduler=scheduled_mode)
    start, end = (None if bound is None else int(bound) for bound in bounds)
    assert fs.cat_file(target.big, *bounds) == CONTENT[start:end]
    assert fs.cat_ranges([target.big] * 2, [bounds[0]] * 2, [bounds[1]] * 2) == [CONTENT[start:end]] * 2


@pytest.mark.parametrize("max_gap", [None, 0, 10, 1_000_000])
def test_cat_ranges_with_a_gap(target: Target, options: dict[str, object], max_gap: int | None) -> None:
    starts = [0, 15, 40, 1_000, 30]
    ends = [start + 5 for start in starts]
    fs = target.headrace(**options)
    got = fs.cat_ranges([target.big] * 5, starts, ends, max_gap=max_gap)
    assert got == [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]


def test_max_gap_decides_what_is_read_through(targets: dict[str, Target], scheduled_mode: str) -> None:
    target = targets["recording"]
    fs = target.headrace(scheduler=scheduled_mode)
    log = recording.read_log(LOG)
    spans = {}
    for max_gap in (0, 10):
        log.clear()
        fs.cat_ranges([target.big] * 3, [0, 15, 1_000], [5, 20, 1_005], max_gap=max_gap)
        spans[max_gap] = sorted(record.span[1:] for record in log.records)
    assert spans == {0: [(0, 5), (15, 20), (1_000, 1_005)], 10: [(0, 20), (1_000, 1_005)]}


@pytest.mark.parametrize("paths", ["big", ("big",), {"big": 1}])
def test_cat_ranges_wants_a_list(disk: Target, options: dict[str, object], paths: Any) -> None:
    with pytest.raises(TypeError):
        disk.headrace(**options).cat_ranges(paths, 0, 1)


@pytest.mark.parametrize(("starts", "ends"), [([0], [1, 2]), ([0, 1, 2], [1, 2]), ([0, 1], [1])])
def test_cat_ranges_wants_equal_lengths(
    disk: Target, options: dict[str, object], starts: list[int], ends: list[int]
) -> None:
    with pytest.raises(ValueError):
        disk.headrace(**options).cat_ranges([disk.big, disk.big], starts, ends)


def _kinds(answers: list[Any]) -> list[Any]:
    return [a if isinstance(a, bytes) else type(a) for a in answers]


def test_cat_ranges_returns_errors(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    paths = [target.big, target.missing, target.small, target.big]
    starts, ends = [0, 0, 5, SIZE + 10], [5, 5, 10, SIZE + 20]
    expected = _kinds(target.plain.cat_ranges(paths, starts, ends))
    assert _kinds(fs.cat_ranges(paths, starts, ends)) == expected
    assert _kinds(fs.cat_ranges(paths, starts, ends, on_error="return")) == expected
    assert expected[0] == CONTENT[:5]
    assert at_rest(fs)


@pytest.mark.parametrize("max_op_bytes", [64 << 10, None])
def test_long_ranges_have_answers_of_their_own(
    target: Target, options: dict[str, object], max_op_bytes: int | None
) -> None:
    """They are read into the caller's bytes: whole, cut short by the end, past it, twice, or not there."""
    fs = target.headrace(**options, max_op_bytes=max_op_bytes)
    starts = [20_000, 0, SIZE - 5, SIZE, SIZE + 10, 0, 20_000]
    ends = [start + LONG_BYTES for start in starts]
    paths = [target.big] * 5 + [target.missing, target.big]
    expected = _kinds(target.plain.cat_ranges(paths, starts, ends))
    assert _kinds(fs.cat_ranges(paths, starts, ends)) == expected
    assert expected[0] == CONTENT[20_000 : 20_000 + LONG_BYTES]
    assert at_rest(fs)


@pytest.mark.parametrize("many", [1, 100])
def test_cat_ranges_that_end_before_they_start(target: Target, scheduled_mode: str, many: int) -> None:
    """Each has its own answer (I10), as many as there are, in a list or an array."""
    fs = target.headrace(scheduler=scheduled_mode)
    paths, starts, ends = [target.small] * 3 * many, [3, 10, 5] * many, [8, 4, 5] * many
    for kind in (list, np.array):
        got = fs.cat_ranges(paths, kind(starts), kind(ends))
        assert [got[0], got[2]] == [OTHER[3:8], b""]
        assert got[0::3] == [got[0]] * many
        for error in got[1::3]:
            assert isinstance(error, ValueError)
            assert str(error) == "end 4 is before start 10"
        with pytest.raises(ValueError, match="end 4 is before start 10"):
            fs.cat_ranges(paths, kind(starts), kind(ends), on_error="raise")
    assert at_rest(fs)


@pytest.mark.parametrize("many", [1, 100])
@pytest.mark.parametrize(
    ("path", "start", "end", "kind"),
    [
        (None, 0, 2, TypeError),
        (["small"], 0, 2, TypeError),
        (5, None, 2, TypeError),
        ("small", 0.0, 2, TypeError),
        ("small", None, 2.0, TypeError),
        ("small", 0, 2**63, ValueError),
    ],
)
def test_what_makes_no_sense_fails_alone(
    target: Target, scheduled_mode: str, many: int, path: Any, start: Any, end: Any, kind: type[Exception]
) -> None:
    """Also where NumPy makes floats of all bounds, for one of them."""
    fs = target.headrace(scheduler=scheduled_mode)
    paths = [target.small, target.small if path == "small" else path, target.big] * many
    starts, ends = [3, start, 0] * many, [8, end, 7] * many
    for found in (
        fs.cat_ranges(paths, starts, ends),
        fs.cat_ranges(paths, starts, ends, max_gap=0),
        asyncio.run(fs._cat_ranges(paths, starts, ends)),
    ):
        assert [_kinds(found[k::3]) for k in range(3)] == [
            [OTHER[3:8]] * many,
            [kind] * many,
            [CONTENT[:7]] * many,
        ]
    with pytest.raises(kind):
        fs.cat_ranges(paths, starts, ends, on_error="raise")
    assert at_rest(fs)


def test_a_path_that_the_filesystem_cannot_name_fails_alone(disk: Target, scheduled_mode: str) -> None:
    class Refusing(LocalFileSystem):
        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            if "refused" in path:
                raise RuntimeError(path)
            return super()._strip_protocol(path)

    fs = headrace.HeadraceFileSystem(fs=Refusing(), scheduler=scheduled_mode)
    assert _kinds(fs.cat_ranges([disk.small, "refused"], 3, 8)) == [OTHER[3:8], RuntimeError]


def test_flags_are_integers(target: Target, scheduled_mode: str) -> None:
    assert target.headrace(scheduler=scheduled_mode).cat_ranges([target.small], [False], [True]) == [
        OTHER[:1]
    ]


def test_cat_ranges_raises_errors(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    paths = [target.big, target.missing]
    expected = outcome(target.plain.cat_ranges, paths, [0, 0], [5, 5], on_error="raise")
    assert outcome(fs.cat_ranges, paths, [0, 0], [5, 5], on_error="raise") is expected
    assert at_rest(fs)


def test_cat_ranges_of_nothing(target: Target, options: dict[str, object]) -> None:
    assert target.headrace(**options).cat_ranges([], 0, 1) == []


def test_cat(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    assert fs.cat(target.big) == CONTENT
    both = fs.cat([target.big, target.small])
    assert list(both.values()) == [CONTENT, OTHER]
    assert list(both) == list(target.plain.cat([target.big, target.small]))


@pytest.mark.parametrize("on_error", ["raise", "omit"])
def test_cat_recursive(target: Target, options: dict[str, object], on_error: str) -> None:
    def cat(fs: Any) -> Any:
        return fs.cat(target.root, recursive=True, on_error=on_error)

    expected = outcome(cat, target.plain)
    assert outcome(cat, target.headrace(**options)) == expected
    if on_error == "omit":
        assert sorted(expected.values()) == sorted([CONTENT, OTHER])


@pytest.mark.parametrize("on_error", ["raise", "omit", "return"])
def test_cat_with_an_error(target: Target, options: dict[str, object], on_error: str) -> None:
    def cat(fs: Any) -> Any:
        answers = fs.cat([target.small, target.missing], on_error=on_error)
        return {path: a if isinstance(a, bytes) else type(a) for path, a in answers.items()}

    assert outcome(cat, target.headrace(**options)) == outcome(cat, target.plain)


@pytest.mark.parametrize("bounds", [{"start": -4}, {"start": 3, "end": 9}, {"end": -7}])
def test_cat_between_bounds(target: Target, options: dict[str, object], bounds: dict[str, int]) -> None:
    """As fastparquet reads the ends of many files."""
    fs, part = target.headrace(**options), slice(bounds.get("start"), bounds.get("end"))
    expected = {"big.bin": CONTENT[part], "small.bin": OTHER[part]}
    found = fs.cat([target.big, target.small], **bounds)
    assert {path.rpartition("/")[2]: data for path, data in found.items()} == expected
    assert fs.cat(target.small, **bounds) == OTHER[part]
    assert list(fs.cat(f"{target.root}/sub/*", **bounds).values()) == [OTHER[part]]
    found = asyncio.run(fs._cat([target.big, target.small], **bounds))
    assert {path.rpartition("/")[2]: data for path, data in found.items()} == expected


def test_a_compressed_file_is_read_as_what_it_holds(
    targets: dict[str, Target], options: dict[str, object]
) -> None:
    """By what fsspec's ``cat_file`` hands on to ``open``; that of memory knows no options."""
    fs = targets["file"].headrace(**options)
    path = f"{targets['file'].root}-compressed.bin.gz"
    fs.pipe_file(path, gzip.compress(CONTENT))
    assert fs.cat_file(path, 7, 70, compression="gzip") == CONTENT[7:70]
    assert fs.cat(path, compression="infer") == CONTENT
    assert set(fs.cat([path, path], compression="gzip").values()) == {CONTENT}
    assert fs.cat_ranges([path] * 2, [0, 5], [3, None], compression="gzip") == [CONTENT[:3], CONTENT[5:]]
    assert asyncio.run(fs._cat_file(path, 7, 70, compression="gzip")) == CONTENT[7:70]
    memory = targets["memory"]
    assert memory.headrace(**options).cat_file(memory.small, compression="gzip") == OTHER


@pytest.mark.parametrize("on_error", ["raise", "omit", "return"])
def test_a_file_that_is_named_alone_is_bytes_or_an_error(
    target: Target, options: dict[str, object], on_error: str
) -> None:
    for fs in (target.plain, target.headrace(**options)):
        with pytest.raises(FileNotFoundError):
            fs.cat(target.missing, on_error=on_error)
        assert fs.cat(target.small, on_error=on_error) == OTHER


def test_the_async_twin_returns_the_error_of_a_file_that_is_named_alone(
    disk: Target, options: dict[str, object]
) -> None:
    answer = asyncio.run(disk.headrace(**options)._cat(disk.missing, on_error="return"))
    assert isinstance(answer, FileNotFoundError)


@pytest.mark.parametrize("asked", ["big.bi?", "*.bin", "b[i]g.bin", "a*b", "a?b"])
def test_cat_of_globs(tmp_path: Path, options: dict[str, object], asked: str) -> None:
    """A dict for a pattern, however many files it fits; bytes for a file that is named so."""
    for name in ("big.bin", "a*b"):
        (tmp_path / name).write_bytes(name.encode())

    def cat(fs: Any) -> Any:
        return fs.cat(f"{tmp_path}/{asked}")

    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    assert outcome(cat, fs) == outcome(cat, fsspec.filesystem("file"))


def test_ranges_that_make_no_sense_are_the_targets_under_off(disk: Target) -> None:
    def cat_ranges(fs: Any) -> Any:
        return _kinds(fs.cat_ranges([disk.big, disk.big, "a\0b"], [5, 9, 0], [1, 12, 1]))

    assert cat_ranges(disk.headrace(scheduler="off")) == cat_ranges(disk.plain)


@pytest.mark.parametrize(("max_gap", "kind"), [("x", TypeError), (0.5, TypeError), (-1, ValueError)])
def test_what_is_no_gap_is_named(
    disk: Target, options: dict[str, object], max_gap: Any, kind: type[Exception]
) -> None:
    fs = disk.headrace(**options)
    with pytest.raises(kind, match="max_gap"):
        fs.cat_ranges([disk.big], [0], [5], max_gap=max_gap)
    with pytest.raises(kind, match="max_gap"):
        asyncio.run(fs._cat_ranges([disk.big], [0], [5], max_gap=max_gap))


def test_bounds_that_are_texts_are_named(disk: Target, scheduled_mode: str) -> None:
    with pytest.raises(TypeError, match="starts must be integers"):
        disk.headrace(scheduler=scheduled_mode).cat_ranges([disk.big] * 20, ["0"] * 20, [5] * 20)


def test_bounds_that_can_be_looked_at_once(disk: Target, options: dict[str, object]) -> None:
    fs, starts = disk.headrace(**options), [3, 9]
    ends = [start + 5 for start in starts]
    expected = [CONTENT[start : start + 5] for start in starts]
    assert fs.cat_ranges([disk.big] * 2, iter(starts), iter(ends)) == expected
    assert fs.read_ranges(disk.big, iter(starts), iter(ends)).to_pylist() == expected


@pytest.mark.parametrize("kind", [tuple, set])
def test_cat_of_other_collections(disk: Target, options: dict[str, object], kind: Any) -> None:
    paths = kind([disk.big, disk.small])
    assert disk.headrace(**options).cat(paths) == disk.plain.cat(paths)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_bounds_of_any_sequence(target: Target, options: dict[str, object], kind: Any) -> None:
    got = target.headrace(**options).cat_ranges([target.big] * 2, kind([0, 5]), kind([3, 9]))
    assert got == [CONTENT[:3], CONTENT[5:9]]


@pytest.mark.parametrize("start", [2**63 - 5, 2**63, 2**64, 2**64 + 3, 2**70])
def test_offsets_larger_than_any_file(tmp_path: Path, scheduled_mode: str, start: int) -> None:
    """And not, by some 64 bits, the start of the file."""
    path = str(tmp_path / "small.bin")
    Path(path).write_bytes(CONTENT[:10])
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    for ask in (
        lambda: fs.cat_file(path, start, start + 5),
        lambda: fs.cat_ranges([path], [start], [start + 5], on_error="raise"),
        lambda: fs.cat_ranges([path] * 50, [start] * 50, [start + 5] * 50, on_error="raise"),
        lambda: fs.read_ranges(path, [start], [start + 5]),
        lambda: fs.read_ranges(path, np.array([0], np.uint64), np.array([2**63], np.uint64)),
    ):
        with pytest.raises(ValueError, match="largest offset"):
            ask()
    with fs.open(path, "rb") as file:
        if start < 2**63:
            assert (file.seek(start), file.read(4)) == (start, b"")
        else:
            with pytest.raises(ValueError, match="largest offset"):
                file.seek(start)


def test_head_tail_and_read_block(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    assert fs.head(target.big, 100) == CONTENT[:100]
    assert fs.tail(target.big, 100) == CONTENT[-100:]
    assert fs.read_block(target.big, 50, 60) == CONTENT[50:110]


class Meeting(AsyncFileSystem):
    """Answers nobody before `expected` requests are there, each with its path and what it was asked."""

    cachable = False
    protocol = "meeting"

    def __init__(self, expected: int = 5, **options: Any) -> None:
        super().__init__(**options)  # an option, as the instance that reads is another one
        self.expected = expected
        self.there = 0
        self.all_there = asyncio.Event()

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, version: str = "new"
    ) -> bytes:
        self.there += 1
        if self.there == self.expected:
            self.all_there.set()
        await asyncio.wait_for(self.all_there.wait(), 20)
        if path == "gone":
            raise FileNotFoundError(path)
        return f"{path} {start} {end} {version}".encode()

    async def _info(self, path: str, **_options: Any) -> dict[str, Any]:
        return {"name": path, "size": 100, "type": "file"}


FIVE = ["a", "b", "gone", "d", "e"]


@pytest.mark.parametrize("bounds", [(None, None), (-9, None), (5, -5)])
def test_ranges_that_are_no_offsets_are_read_side_by_side(
    mode: str, bounds: tuple[int | None, int | None]
) -> None:
    fs = headrace.HeadraceFileSystem(fs=Meeting(), scheduler=mode)
    start, end = bounds
    answers = fs.cat_ranges(FIVE, start, end)
    expected = [f"{name} {start} {end} new".encode() for name in FIVE]
    assert isinstance(answers.pop(2), FileNotFoundError)
    assert answers == [*expected[:2], *expected[3:]]
    assert at_rest(fs)


@pytest.mark.parametrize("bounds", [(None, None), (3, 30)])
def test_ranges_with_options_are_read_side_by_side(mode: str, bounds: tuple[int | None, int | None]) -> None:
    fs = headrace.HeadraceFileSystem(fs=Meeting(), scheduler=mode)
    start, end = bounds
    answers = fs.cat_ranges(FIVE, start, end, version="old")
    assert answers[0] == f"a {start} {end} old".encode()
    assert isinstance(answers[2], FileNotFoundError)
    assert at_rest(fs)


@pytest.mark.parametrize("options", [{}, {"version": "old"}])
def test_whole_files_are_read_side_by_side(mode: str, options: dict[str, Any]) -> None:
    fs = headrace.HeadraceFileSystem(fs=Meeting(), scheduler=mode)
    answers = fs.cat(FIVE, on_error="omit", **options)
    version = options.get("version", "new")
    assert answers == {name: f"{name} None None {version}".encode() for name in FIVE if name != "gone"}
    assert at_rest(fs)


class Couples(Meeting):
    """Answers two requests together."""

    protocol = "couples"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.both = asyncio.Barrier(2)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        try:
            await asyncio.wait_for(self.both.wait(), 20)
        except TimeoutError:
            await self.both.abort()
            raise
        return path.encode()


@pytest.mark.parametrize("is_async", [False, True])
def test_whole_files_of_more_than_the_budget_are_read_side_by_side(
    scheduled_mode: str, *, is_async: bool
) -> None:
    """Each that is taken makes room for another."""
    settings = {"max_op_bytes": 1 << 20, "buffer_bytes": 2 << 20, "retries": 0}
    fs = headrace.HeadraceFileSystem(fs=Couples(), scheduler=scheduled_mode, **settings)
    paths = [f"store/{name}" for name in "abcdef"]
    found = asyncio.run(fs._cat(paths)) if is_async else fs.cat(paths)
    assert found == {path: path.encode() for path in paths}
    assert at_rest(fs)


class Late(Meeting):
    """Answers to "late" when it is told that the others are done with."""

    protocol = "late"
    are_done = threading.Event()

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if path == "store/late":
            assert await asyncio.to_thread(self.are_done.wait, 20)
        return path.encode()


def test_a_whole_file_that_is_late_holds_up_no_other_that_is_awaited(
    scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there are taken, and leave the budget to more."""
    end, taken = reader.Reader._end_cat, list[None]()

    def counted(self: Any, *args: Any) -> Any:
        taken.append(None)
        if len(taken) == 40:
            Late.are_done.set()
        return end(self, *args)

    monkeypatch.setattr(Late, "are_done", threading.Event())
    monkeypatch.setattr(reader.Reader, "_end_cat", counted)
    fs = headrace.HeadraceFileSystem(fs=Late(), scheduler=scheduled_mode, retries=0, io_parallelism=3)
    paths = ["store/late", *(f"store/other-{number}" for number in range(40))]
    assert asyncio.run(fs._cat(paths)) == {path: path.encode() for path in paths}
    assert at_rest(fs)


def test_a_whole_file_that_is_late_holds_up_none_of_those_behind_it(
    scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there hold what they are, and not what they might have been, and are taken before it."""
    deliver, delivered = Ops.deliver, list[None]()

    def counted(self: Ops, row: int, data: Any) -> None:
        deliver(self, row, data)
        delivered.append(None)
        if len(delivered) == 200:
            Late.are_done.set()

    monkeypatch.setattr(Late, "are_done", threading.Event())
    monkeypatch.setattr(Ops, "deliver", counted)
    settings = {"max_op_bytes": 1 << 20, "buffer_bytes": 3 << 20, "retries": 0, "io_parallelism": 3}
    fs = headrace.HeadraceFileSystem(fs=Late(), scheduler=scheduled_mode, **settings)
    paths = ["store/late", *(f"store/other-{number}" for number in range(200))]
    assert fs.cat(paths) == {path: path.encode() for path in paths}
    assert at_rest(fs)


def test_no_whole_file_is_begun_when_the_time_of_the_call_is_over(
    scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are late then, those that were begun and the others."""
    made, make = list[str](), reader.Reader._whole_job

    async def read(_self: Any, _path: str, **_: Any) -> bytes:
        await asyncio.sleep(3600)
        return b""

    def noted(self: Any, source: Any, *args: Any) -> Any:
        made.append(source.path)
        return make(self, source, *args)

    monkeypatch.setattr(Late, "_cat_file", read)
    monkeypatch.setattr(reader.Reader, "_whole_job", noted)
    settings: dict[str, Any] = {"timeout_s": 0.1, "io_parallelism": 1, "retries": 0}
    fs = headrace.HeadraceFileSystem(fs=Late(), scheduler=scheduled_mode, **settings)
    paths = [f"store/{number}" for number in range(3 * single.AHEAD)]
    found = fs.cat(paths, on_error="return")
    assert {type(answer) for answer in found.values()} == {ReadTimeoutError}
    assert made == sorted(paths)[: single.AHEAD]


@pytest.mark.parametrize(("is_async", "most"), [(False, single.AHEAD * 4), (True, reader.TURNS * 4)])
def test_many_whole_files_are_begun_as_others_are_done(
    scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, *, is_async: bool, most: int
) -> None:
    """Neither are there thousands of requests at once, nor does the caller's loop wait for all of them."""
    begin, end = reader.Reader._begin_cat, reader.Reader._end_cat
    under_way, counts = set[str](), list[int]()

    def noted(self: Any, one: Any, *args: Any) -> Any:
        under_way.add(one[0])
        counts.append(len(under_way))
        return begin(self, one, *args)

    def taken(self: Any, begun: Any, *args: Any) -> Any:
        under_way.discard(begun[0].ops.sources[0].path)
        return end(self, begun, *args)

    monkeypatch.setattr(reader.Reader, "_begin_cat", noted)
    monkeypatch.setattr(reader.Reader, "_end_cat", taken)
    fs = headrace.HeadraceFileSystem(fs=Meeting(expected=4), scheduler=scheduled_mode, io_parallelism=4)
    paths = [*(f"first/{number:02}" for number in range(50)), "gone"]
    paths += [f"store/{number:02}" for number in range(50)]
    found = asyncio.run(fs._cat(paths, on_error="return")) if is_async else fs.cat(paths, on_error="return")
    assert list(found) == paths
    assert isinstance(found.pop("gone"), FileNotFoundError)
    assert found == {path: f"{path} None None new".encode() for path in found}
    assert (len(counts), max(counts)) == (101, most)
    assert at_rest(fs)


@pytest.mark.parametrize("paths", [["a"], ["a", "b"]])
def test_how_many_at_a_time_is_no_option_of_a_read(mode: str, paths: list[str]) -> None:
    fs = headrace.HeadraceFileSystem(fs=Meeting(expected=1), scheduler=mode)
    expected = {path: f"{path} None None new".encode() for path in paths}
    assert fs.cat(paths, batch_size=1) == expected

    async def read() -> Any:
        there = headrace.HeadraceFileSystem(fs=Meeting(expected=1, asynchronous=True), scheduler=mode)
        return await there._cat(paths, batch_size=1)

    assert asyncio.run(read()) == expected


def test_a_range_with_options_that_ends_before_it_starts(scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=Meeting(expected=1), scheduler=scheduled_mode)
    wrong, right = fs.cat_ranges(["a", "b"], [9, 3], [4, 13], version="old")
    assert (type(wrong), right) == (ValueError, b"b 3 13 old")


def test_ranges_that_are_no_offsets_end_together_when_the_call_does(scheduled_mode: str) -> None:
    """Nothing of the others is left in flight, or reserved, by an error of one (I3)."""
    fs = headrace.HeadraceFileSystem(fs=Meeting(expected=1), scheduler=scheduled_mode)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(FIVE, None, None, on_error="raise")
    assert at_rest(fs)


def test_an_odd_path_among_many_files_fails_its_own_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduled_mode: str
) -> None:
    monkeypatch.setattr(reader, "MOST_OPEN", 2)
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_bytes(path.encode())
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    odd: list[Any] = [*paths[:2], ["unhashable"], paths[2]]
    found = fs.cat_ranges(odd, [0] * 4, [1] * 4, on_error="return")
    assert isinstance(found.pop(2), (TypeError, AttributeError))
    assert found == [b"/"] * 3
