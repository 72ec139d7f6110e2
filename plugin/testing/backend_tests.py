"""The conformance suite of backends.

Subclass `BackendTests` in a test module and say how to make a target filesystem and put a file
into it::

    class TestMine(BackendTests):
        backend_class = MyBackend

        def make_target(self, tmp_path): ...
        def put(self, target, tmp_path, name, data): ...   # returns the path

Every test that takes `backend` or `performer` drives it through its own protocol
(`headrace.testing.perform`), every test that takes `fs` through headrace, under lite and under
standard, and compares with the bytes that were put and with what the filesystem itself answers. It
needs pytest, and no plugin of it.

`fs` reads through `backend_class` whether or not it is registered, in a runtime of its own, and at
the end of each test nothing may be reserved or in flight. What is not tested here: speed, and
whether the backend is the one that headrace would choose (that is `rank` and `serves` of all that
are installed).
"""

# ruff: noqa: S101, PLR2004 - a test asserts
# ruff: noqa: D401 - fixtures are named for what they are

from __future__ import annotations

import abc
import gc
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import headrace.runtime
from headrace.backends import registry
from headrace.backends.abc import (
    AsyncBackend,
    Backend,
    BulkBackend,
    Defaults,
    InlineBackend,
    ThreadedBackend,
)
from headrace.errors import SchedulerClosedError
from headrace.filesystem import HeadraceFileSystem
from headrace.testing.perform import WAIT_S, Performer, Placed, Row, make_ops
from headrace.types import NOT_YET, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = (InlineBackend, ThreadedBackend, AsyncBackend, BulkBackend)

SIZE = 300_001
"""Bytes of the file that most tests read: no multiple of any block or page."""

DATA = random.Random(2).randbytes(SIZE)  # noqa: S311 - bytes to compare, no secret
OTHER = random.Random(3).randbytes(70_001)  # noqa: S311
LONG = 4 << 20
"""Bytes of the longest op, at the most."""

THREADS = 4

Span = tuple[int, int]

CASES: dict[str, list[Span]] = {
    "whole": [(0, SIZE)],
    "exact": [(0, 1), (4095, 4097), (8192, 12288), (SIZE - 1, SIZE)],
    "adjacent": [(0, 100), (100, 200), (200, 300)],
    "overlapping": [(10, 5000), (2000, 9000), (2000, 2001), (0, 20_000)],
    "unsorted": [(200_000, 200_100), (5, 10), (100_000, 100_001), (0, 5)],
    "duplicate": [(77, 177), (77, 177), (5, 6), (77, 177)],
    "empty": [(0, 0), (17, 17), (SIZE, SIZE), (5, 9)],
    "over the end": [(SIZE - 10, SIZE + 10), (SIZE - 1, SIZE + 100_000), (0, SIZE + 1)],
    "past the end": [(SIZE, SIZE + 5), (SIZE + 100, SIZE + 200), (3, 4)],
}


class BackendTests(abc.ABC):
    """What a backend must do; see the module's text.

    Attributes
    ----------
    backend_class
        The backend.
    many_ops
        Ops of the test of many; fewer for a storage that is slow to answer.
    """

    backend_class: ClassVar[type[Backend]]
    many_ops: ClassVar[int] = 3000

    @abc.abstractmethod
    def make_target(self, tmp_path: Path) -> Any:
        """Return a filesystem that the backend serves."""

    @abc.abstractmethod
    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        """Store a file and return its path."""

    def failing_source(self, backend: Backend, path: str, missing: str) -> Any:  # noqa: ARG002
        """Return a source which every read fails of, with any exception.

        Override it where `open` itself finds out that a file is missing: say, open `path` and
        break what came. As it is here it opens `missing`.
        """
        return backend.open(missing)

    # -- what the tests use

    @pytest.fixture
    def target(self, tmp_path: Path) -> Any:
        """A filesystem that the backend serves."""
        return self.make_target(tmp_path)

    @pytest.fixture
    def path(self, target: Any, tmp_path: Path) -> str:
        """A file of `DATA`."""
        return self.put(target, tmp_path, "data.bin", DATA)

    @pytest.fixture
    def other(self, target: Any, tmp_path: Path) -> str:
        """A file of `OTHER`."""
        return self.put(target, tmp_path, "other.bin", OTHER)

    @pytest.fixture
    def missing(self, path: str) -> str:
        """The path of no file."""
        return path + ".is-not-there"

    @pytest.fixture
    def performer(self, target: Any) -> Iterator[Performer]:
        """The backend, and the loop that it needs."""
        with Performer(self.backend_class(target)) as performer:
            yield performer

    @pytest.fixture
    def backend(self, performer: Performer) -> Backend:
        """The backend."""
        return performer.backend

    @pytest.fixture(params=["lite", "standard"])
    def fs(
        self, request: pytest.FixtureRequest, target: Any, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[HeadraceFileSystem]:
        """Headrace over the backend, whose limits must be free again afterwards."""
        own = headrace.runtime.Runtime()
        monkeypatch.setattr(headrace.runtime, "_current", own)
        monkeypatch.setattr(registry, "backend_for", lambda target, *_, **__: self.backend_class(target))
        monkeypatch.delenv("HEADRACE_SCHEDULER", raising=False)
        fs = HeadraceFileSystem(fs=target, scheduler=request.param, skip_instance_cache=True)
        try:
            assert fs.mode == request.param
            yield fs
            _wait_until_at_rest(fs)
        finally:
            own.close(SchedulerClosedError("the test is over"))

    # -- what it says of itself

    def test_it_is_of_one_kind(self) -> None:
        """The drivers tell the kinds apart by their class."""
        assert sum(issubclass(self.backend_class, kind) for kind in KINDS) == 1

    def test_it_describes_itself(self) -> None:
        """Reports and the registry show these."""
        assert self.backend_class.name
        assert isinstance(self.backend_class.name, str)
        assert isinstance(self.backend_class.rank, int)
        assert isinstance(self.backend_class.defaults, Defaults)

    def test_its_defaults_make_sense(self) -> None:
        """A limit of nothing would stop every read."""
        defaults = self.backend_class.defaults
        assert defaults.mode in {"lite", "standard"}
        assert defaults.max_gap_bytes >= 0
        assert defaults.max_op_bytes > 0
        assert defaults.io_parallelism > 0
        assert defaults.window_bytes >= 0

    def test_it_serves_its_target_and_not_everything(self, target: Any) -> None:
        """`serves` is asked about every filesystem, and must never raise."""
        assert self.backend_class.serves(target) is True
        assert self.backend_class.serves(object()) is False

    def test_a_device_is_hashable_and_stable(self, backend: Backend, target: Any, path: str) -> None:
        """One scheduler for each device: the name must not change from instance to instance."""
        device = backend.device(path)
        hash(device)
        assert backend.device(path) == device
        assert self.backend_class(target).device(path) == device

    def test_a_missing_file_is_of_its_neighbours_device(
        self, backend: Backend, path: str, missing: str
    ) -> None:
        """It is asked for before the file is opened, or of a file that is gone since."""
        assert backend.device(missing) == backend.device(path)

    def test_a_size_is_right_or_unknown(self, backend: Backend, path: str) -> None:
        """An inline backend's is asked for bounds that count from the end, so it must know."""
        source = backend.open(path)
        expected = {SIZE} if isinstance(backend, InlineBackend) else {SIZE, None}
        assert backend.size(source) in expected
        backend.close(source)

    def test_the_guard_can_be_entered_again(self, backend: Backend, target: Any, path: str) -> None:
        """Metadata is asked for under it, by code which may be under it already."""
        with backend.guard(), backend.guard():
            assert target.info(path)["size"] == SIZE

    # -- ops, through its own protocol

    def _opened(self, backend: Backend, *paths: str) -> list[Any]:
        return [backend.open(path) for path in paths]

    @pytest.mark.parametrize("case", CASES)
    def test_ops_of_one_file(self, performer: Performer, target: Any, path: str, case: str) -> None:
        """Each row has its bytes, or the error that the filesystem has for it."""
        spans = CASES[case]
        placed = make_ops(self._opened(performer.backend, path), [(0, *span) for span in spans])
        performer.perform(placed.ops)
        for row, (start, end) in enumerate(spans):
            expected = DATA[start:end]
            if not expected and start != end:
                _same_answer(placed.answer(row), _own_answer(target, path, start, end))
            elif expected or row not in placed.ops.errors:
                assert placed.answer(row) == expected
        assert not len(placed.strays()), f"written outside of any op at {placed.strays()[:5]}"

    def test_ops_of_several_files(self, performer: Performer, path: str, other: str) -> None:
        """`Ops.file` says which source a row is read from."""
        rows: list[Row] = [
            (1, 5, 900),
            (0, 5, 900),
            (1, 0, 1),
            (0, 250_000, 299_999),
            (1, 60_000, 70_001),
        ]
        placed = make_ops(self._opened(performer.backend, path, other), rows)
        performer.perform(placed.ops)
        assert placed.answers() == [(DATA, OTHER)[file][start:end] for file, start, end in rows]
        assert not len(placed.strays())

    def test_one_file_may_be_opened_twice(self, performer: Performer, path: str) -> None:
        """Two readers of a file do not disturb each other."""
        first, second = self._opened(performer.backend, path, path)
        placed = make_ops([first, second], [(0, 0, 50), (1, 100, 150), (0, 50, 99)])
        performer.perform(placed.ops)
        performer.backend.close(first)
        again = make_ops([second], [(0, 7, 70)])
        performer.perform(again.ops)
        assert placed.answers() == [DATA[:50], DATA[100:150], DATA[50:99]]
        assert again.answers() == [DATA[7:70]]

    def test_a_slice_leaves_the_other_rows_alone(self, performer: Performer, path: str) -> None:
        """Rows are granted slice by slice; those not granted yet are not touched."""
        rows: list[Row] = [(0, 1000 * k, 1000 * k + 500) for k in range(30)]
        placed = make_ops(self._opened(performer.backend, path), rows)
        performer.perform(placed.ops, 10, 20)
        assert placed.answers()[10:20] == [DATA[start:end] for _, start, end in rows[10:20]]
        assert not len(placed.strays(range(10, 20)))
        assert set(placed.ops.got[:10].tolist() + placed.ops.got[20:].tolist()) == {NOT_YET}
        performer.perform(placed.ops, 0, 10)
        performer.perform(placed.ops, 20, 30)
        assert placed.answers() == [DATA[start:end] for _, start, end in rows]

    def test_ops_in_series(self, performer: Performer, path: str, missing: str) -> None:
        """So many as the backend says are read one after the other; one that fails or is short ends none."""
        series_ops = getattr(performer.backend, "series_ops", 1)
        source = self.failing_source(performer.backend, path, missing)
        rows = [(0, 5000 * k, 5000 * k + 4000) for k in range(3 * series_ops + 1)]
        rows[1] = (1, 0, 10)
        placed = make_ops([performer.backend.open(path), source], rows)
        placed.ops.series_ops = series_ops
        performer.perform(placed.ops)
        assert list(placed.ops.errors) == [1]
        del rows[1]
        found = placed.answers()
        del found[1]
        assert found == [DATA[start:end] for _, start, end in rows]
        assert not len(placed.strays())

    def test_many_small_ops(self, performer: Performer, path: str) -> None:
        """A batch has any number of rows."""
        placed, rows = self._scattered(performer.backend, path, self.many_ops)
        performer.perform(placed.ops)
        assert placed.answers() == [DATA[start:end] for _, start, end in rows]
        assert not len(placed.strays())

    def _scattered(self, backend: Backend, path: str, n: int) -> tuple[Placed, list[Row]]:
        starts = np.random.default_rng(n).integers(0, SIZE - 64, n).tolist()
        rows: list[Row] = [(0, start, start + 1 + start % 64) for start in starts]
        return make_ops(self._opened(backend, path), rows), rows

    def test_a_long_op(self, performer: Performer, target: Any, tmp_path: Path) -> None:
        """Ops are as long as `Defaults.max_op_bytes` says, and whole."""
        length = min(performer.backend.defaults.max_op_bytes, LONG)
        data = random.Random(4).randbytes(length + 11)  # noqa: S311
        path = self.put(target, tmp_path, "long.bin", data)
        placed = make_ops(self._opened(performer.backend, path), [(0, 11, length + 11)])
        performer.perform(placed.ops)
        assert placed.answer(0) == data[11:]
        assert not len(placed.strays())

    def test_a_file_that_was_replaced(self, performer: Performer, target: Any, tmp_path: Path) -> None:
        """Who opens it now reads what it is now."""
        for data in (DATA[:500], OTHER[:500]):
            path = self.put(target, tmp_path, "replaced.bin", data)
            source = performer.backend.open(path)
            placed = make_ops([source], [(0, 0, 500), (0, 100, 200)])
            performer.perform(placed.ops)
            assert placed.answers() == [data, data[100:200]]
            performer.backend.close(source)

    def test_a_verdict_of_any_error(self, backend: Backend) -> None:
        """It is asked about whatever a read raised, and must never raise; what is not there stays so."""
        for error in (OSError(), TimeoutError(), ConnectionResetError(), ValueError("?"), RuntimeError()):
            assert isinstance(backend.verdict(error), Verdict)
        assert not backend.verdict(FileNotFoundError()).is_retryable

    def test_a_missing_file(self, performer: Performer, missing: str) -> None:
        """`open` raises FileNotFoundError, or else each read of it does."""
        try:
            source = performer.backend.open(missing)
        except FileNotFoundError:
            return
        placed = make_ops([source], [(0, 0, 10), (0, 100, 110)])
        performer.perform(placed.ops)
        assert [type(answer) for answer in placed.answers()] == [FileNotFoundError] * 2

    def test_a_failing_row_fails_alone(self, performer: Performer, path: str, missing: str) -> None:
        """Every other row has its bytes, also those after it in the slice (I10)."""
        backend = performer.backend
        source = self.failing_source(backend, path, missing)
        rows: list[Row] = [(0, 0, 100), (1, 0, 100), (0, 50, 150), (1, 5, 6), (0, 9000, 9001)]
        placed = make_ops([backend.open(path), source], rows)
        performer.perform(placed.ops)
        assert sorted(placed.ops.errors) == [1, 3]
        assert all(isinstance(error, Exception) for error in placed.ops.errors.values())
        for row in (0, 2, 4):
            _, start, end = rows[row]
            assert placed.answer(row) == DATA[start:end]
        assert not len(placed.strays())

    def test_ops_keep_their_source(self, performer: Performer, path: str) -> None:
        """The caller may let go of everything but the ops (I9)."""
        placed = make_ops([performer.backend.open(path)], [(0, 0, 5000), (0, 6000, 6001)])
        gc.collect()
        performer.perform(placed.ops)
        assert placed.answers() == [DATA[:5000], DATA[6000:6001]]

    def test_abandoned_ops_disturb_nobody(self, performer: Performer, path: str) -> None:
        """Ops that were started may never be finished, their memory used for something else."""
        backend = performer.backend
        placed, _ = self._scattered(backend, path, 200)
        if isinstance(backend, InlineBackend):
            backend.start(placed.ops, 0, 200)
        else:
            performer.perform(placed.ops, 0, 100)
        del placed
        gc.collect()
        again, rows = self._scattered(backend, path, 100)
        performer.perform(again.ops)
        assert again.answers() == [DATA[start:end] for _, start, end in rows]
        assert not len(again.strays())

    def test_several_threads(self, performer: Performer, path: str) -> None:
        """Slices of one request, and requests of several threads, are performed at once."""
        placed, rows = self._scattered(performer.backend, path, 400)
        slices = [(placed.ops, lo, lo + 100) for lo in range(0, 400, 100)]
        if isinstance(performer.backend, AsyncBackend):
            # One thread runs a loop; its ops overlap as coroutines.
            performer.perform(placed.ops)
        else:
            n = min(THREADS, self.backend_class.defaults.io_parallelism)
            with ThreadPoolExecutor(n) as pool:
                for done in [pool.submit(performer.perform, *one) for one in slices]:
                    done.result(WAIT_S)
        assert placed.answers() == [DATA[start:end] for _, start, end in rows]
        assert not len(placed.strays())

    # -- reads, through headrace

    @pytest.mark.parametrize("case", CASES)
    def test_read_ranges(self, fs: HeadraceFileSystem, target: Any, path: str, case: str) -> None:
        """Each range has the filesystem's own answer, whatever was coalesced or split (I8)."""
        starts, ends = zip(*CASES[case], strict=True)
        batch = fs.read_ranges(path, list(starts), list(ends))
        found = batch.to_pylist(on_error="return")
        for (start, end), answer in zip(CASES[case], found, strict=True):
            _same_answer(answer, _own_answer(target, path, start, end))

    def test_cat_ranges_of_several_files(
        self, fs: HeadraceFileSystem, path: str, other: str, missing: str
    ) -> None:
        """A file that is missing fails its own ranges alone."""
        paths = [other, path, missing, path, other]
        starts, ends = [0, 1000, 0, 0, 70_000], [10, 260_000, 10, 1, 70_001]
        found = fs.cat_ranges(paths, starts, ends, max_gap=64)
        assert isinstance(found.pop(2), FileNotFoundError)
        assert found == [OTHER[:10], DATA[1000:260_000], DATA[:1], OTHER[70_000:]]
        with pytest.raises(FileNotFoundError):
            fs.cat_ranges(paths, starts, ends, on_error="raise")

    @pytest.mark.parametrize(
        ("start", "end"),
        [(None, None), (None, 10), (-10, None), (-20, -10), (100, -100), (5, 5), (SIZE - 5, None)],
    )
    def test_cat_file(
        self, fs: HeadraceFileSystem, target: Any, path: str, start: int | None, end: int | None
    ) -> None:
        """Bounds that are no plain offsets mean what the filesystem makes of them."""
        expected = _own_answer(target, path, start, end)
        if isinstance(expected, Exception):
            with pytest.raises(type(expected)):
                fs.cat_file(path, start=start, end=end)
        else:
            assert fs.cat_file(path, start=start, end=end) == expected

    def test_cat_of_a_missing_file(self, fs: HeadraceFileSystem, missing: str) -> None:
        """In whole and in part."""
        with pytest.raises(FileNotFoundError):
            fs.cat_file(missing)
        with pytest.raises(FileNotFoundError):
            fs.cat_file(missing, start=0, end=10)

    def test_an_open_file(self, fs: HeadraceFileSystem, path: str) -> None:
        """Seeks, reads by pieces, reads to the end."""
        with fs.open(path, "rb") as file:
            assert file.read(10) == DATA[:10]
            assert file.seek(-100, 2) == SIZE - 100
            assert file.read() == DATA[-100:]
            assert file.read(1) == b""
            file.seek(0)
            assert file.read() == DATA
            target = bytearray(5000)
            file.seek(SIZE - 2000)
            assert file.readinto(target) == 2000
            assert target[:2000] == DATA[-2000:]

    def test_an_empty_file(self, fs: HeadraceFileSystem, target: Any, tmp_path: Path) -> None:
        """It has a beginning, which is its end."""
        path = self.put(target, tmp_path, "empty.bin", b"")
        assert fs.read_ranges(path, [0], [0]).to_pylist() == [b""]
        with fs.open(path, "rb") as file:
            assert file.read() == b""

    def test_many_ranges(self, fs: HeadraceFileSystem, path: str) -> None:
        """Scattered ones, of which some overlap."""
        starts = np.random.default_rng(5).integers(0, SIZE - 100, self.many_ops)
        batch = fs.read_ranges(path, starts, starts + 100)
        assert batch.to_pylist() == [DATA[start : start + 100] for start in starts.tolist()]

    def test_results_stay_what_they_are(self, fs: HeadraceFileSystem, path: str) -> None:
        """Nothing that is read later is written into a result that somebody holds (I9)."""
        views = []
        for k in range(40):
            views.append((k, fs.read_ranges(path, [k * 1000], [k * 1000 + 999])[0]))
            del views[: len(views) // 2 if k % 10 == 9 else 0]
            gc.collect(0)
        assert views
        for k, view in views:
            assert bytes(view) == DATA[k * 1000 : k * 1000 + 999]

    def test_reads_from_several_threads(self, fs: HeadraceFileSystem, path: str, other: str) -> None:
        """Of the same files and at once."""

        def read(seed: int) -> None:
            for start in np.random.default_rng(seed).integers(0, 69_000, 25).tolist():
                answers = fs.cat_ranges([path, other], [start, start], [start + 1000, start + 1000])
                assert answers == [DATA[start : start + 1000], OTHER[start : start + 1000]]

        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(read, seed) for seed in range(THREADS)]:
                done.result(WAIT_S)

    def test_a_submitted_read(self, fs: HeadraceFileSystem, path: str) -> None:
        """It goes on by itself, may be asked late, and may be dropped."""
        wanted = fs.submit_ranges(path, [0, 250_000], [100, 250_100])
        dropped = fs.submit_ranges(path, [1000], [2000])
        cancelled = fs.submit_ranges(path, [3000], [4000])
        cancelled.cancel()
        del dropped
        assert wanted.result(WAIT_S).to_pylist() == [DATA[:100], DATA[250_000:250_100]]


def _wait_until_at_rest(fs: HeadraceFileSystem) -> None:
    """Wait for the ops of reads that were given up; then nothing may be held (I1, I3)."""
    deadline_s = time.monotonic() + WAIT_S
    while (held := _held(fs)) != (0, 0):
        assert time.monotonic() < deadline_s, f"(reserved bytes, ops in flight) stay {held}"
        time.sleep(0.001)


def _held(fs: HeadraceFileSystem) -> tuple[int, int]:
    stats = fs.stats()
    return stats.reserved_bytes, stats.in_flight_ops


def _own_answer(target: Any, path: str, start: int | None, end: int | None) -> bytes | Exception:
    """Return what the filesystem itself says.

    But of a range of no bytes: S3 takes that for no range at all, and sends the whole object or an error.
    """
    try:
        if start == end and start is not None and start >= 0:
            target.info(path)
            return b""
        return bytes(target.cat_file(path, start=start, end=end))
    except Exception as error:  # noqa: BLE001 - it is the answer to compare with
        return error


def _same_answer(found: object, expected: bytes | Exception) -> None:
    """Compare bytes, or the types of exceptions."""
    if isinstance(expected, Exception):
        assert type(found) is type(expected), f"{found!r} is not the filesystem's own {expected!r}"
    else:
        assert found == expected
