"""The short cuts of local reads: batches the page cache holds, a few small ranges, and long ranges."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import drop, needs_nowait, tells_what_is_cached
from targets import at_rest

import headrace
from headrace.backends import _linux as linux
from headrace.backends._ring import Ring
from headrace.backends.abc import InlineBackend
from headrace.backends.local import LocalBackend
from headrace.core.window import Window
from headrace.drivers.job import Job
from headrace.quick import COPY_BYTES
from headrace.reader import LONG_BYTES
from headrace.types import Ops

SIZE = 8 << 20
CONTENT = np.random.default_rng(11).bytes(SIZE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cached") / "data.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def fs(scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)


def _ranges(n: int, longest: int) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(n)
    starts = rng.integers(0, SIZE - longest, n)
    return starts.tolist(), (starts + rng.integers(0, longest, n)).tolist()


def _counted(fs: Any) -> tuple[int, int]:
    """Ops without a request so far, and requests of whatever kind."""
    engine = fs.channel.engine
    with engine.lock:
        counters = engine.hub.counters
        return counters.quick_ops, counters.requests_submitted


@needs_nowait
def test_a_small_hot_buffer_needs_no_request(path: Path, fs: headrace.HeadraceFileSystem) -> None:
    """Arrow reads footers and short columns like this."""
    path.read_bytes()
    with fs.open(str(path)) as file:
        file.seek(SIZE - 60_000)
        before = _counted(fs)
        assert file.read_buffer(50_000).to_pybytes() == CONTENT[SIZE - 60_000 : SIZE - 10_000]
        assert file.read_buffer(60_000).to_pybytes() == CONTENT[SIZE - 10_000 :]
        assert file.tell() == SIZE
    assert _counted(fs) == (before[0] + 2, before[1])


@needs_nowait
def test_what_is_cached_is_told_without_reading_it(tmp_path: Path) -> None:
    if not tells_what_is_cached(tmp_path):
        pytest.skip("no cachestat (Linux 6.5), or not for us")
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        fd = file.fileno()
        assert linux.is_cached(fd, 0, 1 << 20)
        assert linux.is_cached(fd, 4095, 2)
        assert not linux.is_cached(fd, 1, 1 << 20), "no page is behind the end"
        drop(path)
        for _ in range(2):
            assert not linux.is_cached(fd, 4096, 65536)
        os.pread(fd, 1, 0)
        assert linux.is_cached(fd, 0, 4096)
        assert not linux.is_cached(fd, 0, 1 << 20)
    assert not linux.is_cached(-1, 0, 1)


@needs_nowait
@pytest.mark.parametrize("way", ["hot", "cold", "evicted", "trace", "limit", "direct", "long"])
def test_a_long_hot_range_needs_no_request(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Whatever keeps it from being copied at once leaves it to the scheduler."""
    if not tells_what_is_cached(tmp_path):
        pytest.skip("no cachestat (Linux 6.5), or not for us")
    path, nbytes = tmp_path / "data.bin", COPY_BYTES + 1 if way == "long" else 3_000_000
    content = CONTENT + CONTENT[:10]
    path.write_bytes(content)
    options = {"limit": {"process_io_limit": 4}, "direct": {"uring_direct": True}}.get(way, {})
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, **options)
    if way == "cold":
        drop(path)
    if way == "evicted":
        monkeypatch.setattr(linux, "read_cached", lambda *_given: -1)
    with contextlib.ExitStack() as stack, fs.open(str(path)) as file:
        if way == "trace":
            stack.enter_context(headrace.trace())
        before = _counted(fs)
        assert file.read(nbytes) == content[:nbytes]
        quick, requests = _counted(fs)
    # Without io_uring nothing goes around the page cache.
    is_quick = way == "hot" or (way == "direct" and fs.channel.backend.name != "uring")
    assert (quick - before[0], requests - before[1]) == ((1, 0) if is_quick else (0, 1))
    stats = fs.stats()
    assert (stats.in_flight_ops, stats.reserved_bytes) == (0, 0)


@needs_nowait
@needs_nowait
def test_a_hot_batch_is_copied_in_slices_that_fit_a_small_window(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside urgent reads: what the page cache holds goes no slower for it."""
    path.read_bytes()
    small = Window(initial=64 << 10, least=64 << 10, most=64 << 10)
    monkeypatch.setattr(fs.channel.scheduler(str(path)).room, "window", small)
    starts, ends = _ranges(1_000, 5_000)
    before = _counted(fs)
    batch = fs.read_ranges(str(path), starts, ends)
    assert batch.to_pylist() == [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]
    assert _counted(fs) == (before[0] + 1_000, before[1])


@needs_nowait
@pytest.mark.parametrize("n", [1, 64, 5_000])
def test_a_hot_batch_needs_no_request(path: Path, fs: headrace.HeadraceFileSystem, n: int) -> None:
    path.read_bytes()
    starts, ends = _ranges(n, 5_000)
    before = _counted(fs)
    batch = fs.read_ranges(str(path), starts, ends)
    assert batch.to_pylist() == [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]
    assert _counted(fs) == (before[0] + n, before[1])


@needs_nowait
def test_a_hot_batch_needs_no_other_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside busy threads the way to the loop thread and back costs more than the batch."""
    path.read_bytes()
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler="standard")
    monkeypatch.setattr(fs.channel.driver, "thread", None)
    starts, ends = _ranges(5_000, 700)
    found = fs.read_ranges(str(path), starts, ends).to_pylist()
    assert found == [CONTENT[start:end] for start, end in zip(starts, ends, strict=True)]


@needs_nowait
def test_a_miss_leaves_the_batch_to_the_scheduler(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.read_bytes()
    backend = fs.channel.backend
    probe_rows, asked = backend.probe_rows, []

    def third_misses(ops: Any, lo: int, hi: int, **how: bool) -> bool:
        asked.append((lo, hi))
        return probe_rows(ops, lo, hi, **how) and len(asked) < 3

    monkeypatch.setattr(backend, "probe_rows", third_misses)
    starts, ends = _ranges(1_000, 5_000)
    before = _counted(fs)
    batch = fs.read_ranges(str(path), starts, ends)
    assert batch.to_pylist() == [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]
    assert len(asked) == 3
    assert _counted(fs)[1] == before[1] + 1


def test_a_batch_past_the_end(path: Path, fs: headrace.HeadraceFileSystem) -> None:
    starts = [0, SIZE - 10, SIZE, SIZE + 100]
    batch = fs.read_ranges(str(path), starts, [start + 20 for start in starts])
    assert batch.to_pylist() == [CONTENT[:20], CONTENT[-10:], b"", b""]


@needs_nowait
def test_a_batch_that_is_interrupted_writes_nothing_afterwards(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer is the caller's again (I9): the next batch must not submit what this one has filled."""
    if fs.channel.backend.name != "uring":
        pytest.skip("there is no ring")
    path.read_bytes()
    enter = Ring.enter

    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.setattr(Ring, "enter", enter)
        raise KeyboardInterrupt

    starts, ends = _ranges(1_000, 1_000)
    out = np.zeros(sum(ends) - sum(starts), np.uint8)
    monkeypatch.setattr(Ring, "enter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fs.read_ranges(str(path), starts, ends, out=out)
    out[:] = 0
    batch = fs.read_ranges(str(path), starts, ends)
    assert batch.to_pylist() == [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]
    assert not out.any()


def test_a_batch_into_a_buffer(path: Path, fs: headrace.HeadraceFileSystem) -> None:
    out = bytearray(30)
    batch = fs.read_ranges(str(path), [100, 0], [120, 10], out=out)
    assert batch.to_pylist() == [CONTENT[100:120], CONTENT[:10]]
    with pytest.raises(ValueError, match="out holds 5 bytes, the result needs"):
        fs.read_ranges(str(path), [100, 0], [120, 10], out=bytearray(5))


class Misses:
    """Has the page cache miss some starts, and notes which thread reads them."""

    def __init__(self, backend: Any, starts: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.readers: list[int] = []
        self.probers: list[int] = []
        self._starts = starts
        self._probe, self._read_one = backend.probe, backend.read_one
        monkeypatch.setattr(backend, "probe", self.probe)
        monkeypatch.setattr(backend, "read_one", self.read_one)

    def probe(self, source: Any, start: int, length: int) -> bytes | None:
        self.probers.append(threading.get_ident())
        return None if start in self._starts else self._probe(source, start, length)

    def read_one(self, source: Any, start: int, length: int) -> bytes:
        self.readers.append(threading.get_ident())
        found: bytes = self._read_one(source, start, length)
        return found


@needs_nowait
@pytest.mark.parametrize("starts", [[5], [0, 300_000, 5, 5, 900], [0, 1, 2, 3], list(range(5, 85, 5))])
def test_a_few_ranges_take_no_plan(
    path: Path, fs: headrace.HeadraceFileSystem, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Misses are one request, admitted past the queue and read by the thread that waits, in each mode.

    Where there are several, that thread probes, too.
    """
    path.read_bytes()
    missed = [start for start in starts if start % 2]
    misses = Misses(fs.channel.backend, set(missed), monkeypatch)
    before = _counted(fs)
    got = fs.cat_ranges([str(path)] * len(starts), starts, [start + 10 for start in starts])
    assert got == [CONTENT[start : start + 10] for start in starts]
    assert misses.readers == [threading.get_ident()] * len(missed)
    if len(starts) > 1:
        assert misses.probers == [threading.get_ident()] * len(starts)
    assert _counted(fs) == (before[0] + len(starts) - len(missed), before[1] + 1)
    stats = fs.stats()
    assert (stats.in_flight_ops, stats.reserved_bytes) == (0, 0)


@needs_nowait
def test_who_looks_after_a_miss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In standard the loop thread, but after a read that missed: its consumer, who read that, too."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler="standard", skip_instance_cache=True)
    path.read_bytes()
    misses = Misses(fs.channel.backend, {5}, monkeypatch)
    for start in (0, 5, 10, 15):
        assert fs.cat_file(str(path), start, start + 5) == CONTENT[start : start + 5]
    was_here = [ident == threading.get_ident() for ident in misses.probers]
    assert was_here == [False, False, True, False]


@needs_nowait
@pytest.mark.parametrize("others_had_turns", [False, True])
def test_hot_batches_shorten_turns_where_several_others_have_them(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, others_had_turns: bool
) -> None:
    path.read_bytes()
    asked: list[float] = []
    monkeypatch.setattr(fs.channel.turns, "shorten", asked.append)
    monkeypatch.setattr(fs.channel.copies, "end", lambda _copy: others_had_turns)
    starts, ends = _ranges(1_000, 1_000)
    before = _counted(fs)
    fs.read_ranges(str(path), starts, ends)
    assert _counted(fs) == (before[0] + 1_000, before[1]), "it was not planned"
    assert bool(asked) == others_had_turns


class Held:
    """Has a backend start nothing before `is_open` is set; says when it was first asked to."""

    def __init__(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, self.has_begun = threading.Event(), threading.Event()
        self._start = backend.start
        monkeypatch.setattr(backend, "start", self.start)

    def start(self, ops: Any, lo: int, hi: int) -> Any:
        self.has_begun.set()
        assert self.is_open.wait(60)
        return self._start(ops, lo, hi)


@needs_nowait
def test_an_urgent_read_is_not_behind_the_loop_thread(
    path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits there is less urgent; it is read, from the page cache or not, by who wants it."""
    path.read_bytes()
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, max_op_bytes=100_000)
    backend = fs.channel.backend
    disk = Held(backend, monkeypatch)
    misses = Misses(backend, {7}, monkeypatch)
    scans = [fs.submit_ranges(str(path), [0], [SIZE]) for _ in range(3)]
    try:
        assert disk.has_begun.wait(60)
        assert fs.channel.scheduler(str(path)).waiting
        urgent = fs.with_priority(-1)
        assert urgent.cat_file(str(path), 4, 14) == CONTENT[4:14]
        assert urgent.cat_file(str(path), 7, 17) == CONTENT[7:17]
        assert misses.readers == [threading.get_ident()]
    finally:
        disk.is_open.set()
    assert [bytes(scan.result()[0]) for scan in scans] == [CONTENT] * 3


@needs_nowait
def test_an_urgent_read_is_not_behind_series_either(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan whose round is under way is not in the queue, and yet the loop thread is for it."""
    path.read_bytes()
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler="standard", max_op_bytes=100_000)
    backend = fs.channel.backend
    if backend.name != "uring":
        pytest.skip("series are the ring's")
    disk = Held(backend, monkeypatch)
    misses = Misses(backend, set(), monkeypatch)
    monkeypatch.setattr(Window, "limit", 350_000)  # three series
    scan = fs.submit_ranges(str(path), [0], [SIZE])
    try:
        assert disk.has_begun.wait(60)
        scheduler = fs.channel.scheduler(str(path))
        assert (scheduler.waiting, len(scheduler.in_rounds)) == (0, 1)
        assert fs.with_priority(-1).cat_file(str(path), 4, 14) == CONTENT[4:14]
        assert misses.probers == [threading.get_ident()]
    finally:
        disk.is_open.set()
    assert bytes(scan.result()[0]) == CONTENT


class Fills:
    """Notes who fills what, and what the device was not needed for."""

    def __init__(
        self, backend: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None
    ) -> None:
        self.by: list[int] = []
        self.hits: list[bool] = []
        self._fill, self._error = backend.fill, error
        monkeypatch.setattr(backend, "fill", self.fill)
        # What the kernel says it holds is copied, and beside urgent reads, as in other tests, ops are short.
        monkeypatch.setattr(backend, "copy", lambda *_given: False)
        monkeypatch.setattr(Window, "expects_urgent", False)

    def fill(self, source: Any, start: int, out: memoryview) -> tuple[int, bool]:
        self.by.append(threading.get_ident())
        if self._error is not None:
            raise self._error
        got, is_hit = self._fill(source, start, out)
        self.hits.append(is_hit)
        return got, is_hit


@needs_nowait
def test_a_range_of_one_op_is_read_by_who_wants_it(
    path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    fills = Fills(fs.channel.backend, monkeypatch)
    if scheduled_mode == "standard":
        monkeypatch.setattr(fs.channel.driver, "thread", None)
    with fs.open(str(path)) as file, headrace.trace() as trace:
        assert file.read(300_000) == CONTENT[:300_000]
        file.seek(SIZE - 300_000)
        assert file.read_buffer(300_000).to_pybytes() == CONTENT[SIZE - 300_000 :]
    assert fills.by == [threading.get_ident()] * 2
    events = [event.event for event in trace.events]
    assert events == ["queued", "admitted", "submitted", "completed", "consumed"] * 2
    assert at_rest(fs)


@needs_nowait
def test_what_the_page_cache_held_after_all_tells_the_window_nothing(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.read_bytes()
    fills = Fills(fs.channel.backend, monkeypatch)
    before = fs.channel.engine.hub.counters.ops_hit
    with fs.open(str(path)) as file:
        assert file.read(300_000) == CONTENT[:300_000]
    assert fills.hits == [True]
    assert fs.channel.engine.hub.counters.ops_hit == before + 1


@needs_nowait
def test_a_range_of_one_op_past_the_end(
    tmp_path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that shrinks after its size was known."""
    path = tmp_path / "shrinks.bin"
    path.write_bytes(CONTENT[:400_000])
    fills = Fills(fs.channel.backend, monkeypatch)
    before = fs.channel.engine.hub.counters.bytes_short
    with fs.open(str(path), size=400_000) as file:
        os.truncate(path, 250_000)
        assert file.read(400_000) == CONTENT[:250_000]
    assert fills.hits == [False]
    assert fs.channel.engine.hub.counters.bytes_short == before + 150_000
    assert at_rest(fs)


@needs_nowait
@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), TimeoutError("the alarm"), KeyboardInterrupt()], ids=repr
)
def test_a_range_of_one_op_that_fails(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    Fills(fs.channel.backend, monkeypatch, error)
    with fs.open(str(path)) as file, headrace.trace() as trace, pytest.raises(type(error)) as raised:
        file.read(300_000)
    assert raised.value is error
    is_given_up = isinstance(error, KeyboardInterrupt)
    events = [event.event for event in trace.events]
    assert events == ["queued", "admitted", "submitted", "completed"][: 3 if is_given_up else 4]
    assert at_rest(fs)


@needs_nowait
@pytest.mark.parametrize("limits", [{"process_io_limit": 1}, {}], ids=["one op", "no limit"])
@pytest.mark.parametrize(
    ("mode", "while_it"),
    [  # what is started in standard is on no consumer's thread, and so no handler's
        ("lite", "fill"),
        ("lite", "read_one"),
        ("lite", "start"),
        ("standard", "fill"),
        ("standard", "read_one"),
    ],
)
def test_a_handler_that_reads_while_its_thread_reads(
    path: Path, mode: str, monkeypatch: pytest.MonkeyPatch, while_it: str, limits: dict[str, Any]
) -> None:
    """It must not wait for what the frame below it holds, which goes on when the handler is over."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=mode, **limits)
    backend, answers = fs.channel.backend, []
    Fills(backend, monkeypatch)
    monkeypatch.setattr(backend, "probe", lambda *_given: None)
    monkeypatch.setattr(backend, "probe_rows", lambda *_given, **_how: False)
    interrupted = getattr(backend, while_it)

    def interrupt(*given: Any) -> Any:
        monkeypatch.setattr(backend, while_it, interrupted)
        answers.append(fs.cat_file(str(path), 7, 17))
        answers.append(fs.cat_file(str(path), 0, 1 << 20))
        return interrupted(*given)

    monkeypatch.setattr(backend, while_it, interrupt)
    reads: dict[str, Any] = {
        "fill": lambda: fs.cat_file(str(path), 0, 1 << 20),
        "read_one": lambda: fs.cat_file(str(path), 0, 50),
        "start": lambda: fs.read_ranges(str(path), [0, 5000], [4, 5004]).to_pylist(),
    }
    thread = threading.Thread(target=lambda: answers.append(reads[while_it]()), daemon=True)
    thread.start()
    thread.join(30)
    assert len(answers) == 3, "it hangs"
    assert answers[:2] == [CONTENT[7:17], CONTENT[: 1 << 20]]
    assert at_rest(fs)


@needs_nowait
@pytest.mark.parametrize("limits", [{"process_io_limit": 1}, {}], ids=["one op", "no limit"])
@pytest.mark.parametrize(("mode", "what"), [("lite", "long"), ("standard", "long"), ("lite", "ranges")])
def test_a_handler_that_reads_when_its_threads_read_was_just_admitted(
    path: Path, mode: str, monkeypatch: pytest.MonkeyPatch, what: str, limits: dict[str, Any]
) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=mode, **limits)
    backend, answers, submit = fs.channel.backend, [], Job.submit
    Fills(backend, monkeypatch)
    monkeypatch.setattr(backend, "probe", lambda *_given: None)
    monkeypatch.setattr(backend, "probe_rows", lambda *_given, **_how: False)

    def interrupt(job: Job) -> None:
        submit(job)
        monkeypatch.setattr(Job, "submit", submit)
        answers.append(fs.cat_file(str(path), 7, 1 << 20))

    monkeypatch.setattr(Job, "submit", interrupt)
    reads: dict[str, Any] = {
        "long": lambda: fs.cat_file(str(path), 0, 1 << 20),
        "ranges": lambda: fs.read_ranges(str(path), [0, 5000], [4, 5004]).to_pylist(),
    }
    thread = threading.Thread(target=lambda: answers.append(reads[what]()), daemon=True)
    thread.start()
    thread.join(30)
    assert len(answers) == 2, "it hangs"
    assert answers[0] == CONTENT[7 : 1 << 20]
    assert at_rest(fs)


def test_an_error_of_the_disk_names_the_file(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: object) -> int:
        raise OSError(5, "Input/output error")

    Fills(fs.channel.backend, monkeypatch)
    with fs.open(str(path)) as file:
        monkeypatch.setattr(linux, "pread_into", broken)
        monkeypatch.setattr(linux, "read_cached", lambda *_given: -1)
        with pytest.raises(OSError, match="Input/output error") as raised:
            file.read(300_000)
    assert raised.value.filename == str(path)


@needs_nowait
def test_a_time_out_leaves_misses_to_those_who_can_be_left(
    path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, timeout_s=60)
    misses = Misses(fs.channel.backend, {7}, monkeypatch)
    assert fs.cat_file(str(path), 7, 17) == CONTENT[7:17]
    assert len(misses.readers) == (1 if scheduled_mode == "lite" else 0)


@pytest.mark.parametrize("backend_options", [{"local_backend": "pread"}, {"uring_direct": True}])
def test_a_folder_is_an_error_of_its_own_range(
    path: Path, scheduled_mode: str, backend_options: dict[str, Any]
) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, **backend_options)
    for paths in ([str(path.parent)], [str(path), str(path.parent), str(path)]):
        got = fs.cat_ranges(paths, [0] * len(paths), [10] * len(paths))
        assert [type(one) for one in got] == [
            IsADirectoryError if one == str(path.parent) else bytes for one in paths
        ]


def test_a_backend_that_cannot_probe_is_never_asked_to(path: Path, scheduled_mode: str) -> None:
    class Plain(InlineBackend):
        name, defaults = "plain", LocalBackend.defaults

        @classmethod
        def serves(cls, target: Any) -> bool:
            return target is not None

        def device(self, path: str) -> str:
            return path[:0]

        def open(self, path: str, **_options: Any) -> Any:
            return path

        def finish(self, ops: Ops, rows: Any) -> None:
            for row in rows.tolist():
                start = int(ops.start[row])
                ops.deliver(row, CONTENT[start : start + int(ops.length[row])])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("headrace.backends.registry.backend_for", lambda target, *_, **__: Plain(target))
        fs = headrace.HeadraceFileSystem(
            target_protocol="file", scheduler=scheduled_mode, buffer_bytes=(1 << 20) + 7
        )
        assert fs.channel.backend.name == "plain"
    assert fs.cat_file(str(path), 5, 15) == CONTENT[5:15]
    assert fs.cat_ranges([str(path)] * 3, [0, 7, 9], [3, 10, 12]) == [
        CONTENT[:3],
        CONTENT[7:10],
        CONTENT[9:12],
    ]


@needs_nowait
def test_a_miss_that_fails_is_answered_by_the_scheduled_way(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error belongs to the range (I10): `cat_ranges` hands it out, or raises it."""
    misses = Misses(fs.channel.backend, {0}, monkeypatch)
    folder = str(path.parent)
    for paths in ([folder], [folder, str(path)]):
        got = fs.cat_ranges(paths, [0] * len(paths), [10] * len(paths))
        assert [type(one) for one in got] == [IsADirectoryError, bytes][: len(paths)]
        with pytest.raises(IsADirectoryError):
            fs.cat_ranges(paths, [0] * len(paths), [10] * len(paths), on_error="raise")
    assert misses.readers
    stats = fs.stats()
    assert (stats.in_flight_ops, stats.reserved_bytes) == (0, 0)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_long_ranges(path: Path, fs: headrace.HeadraceFileSystem, n: int) -> None:
    rng = np.random.default_rng(n)
    starts = rng.integers(0, SIZE - 3_000_000, n).tolist()
    ends = [start + int(rng.integers(LONG_BYTES, 3_000_000)) for start in starts]
    got = fs.cat_ranges([str(path)] * n, starts, ends)
    assert got == [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]
    assert {type(one) for one in got} == {bytes}
    assert fs.stats().reserved_bytes == 0


def test_long_ranges_are_not_copied(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read into are the bytes that the caller gets, of whatever order and overlaps."""
    backend, columns = fs.channel.backend, []
    start = backend.start

    def noted(ops: Any, lo: int, hi: int) -> Any:
        columns.append(ops)
        return start(ops, lo, hi)

    monkeypatch.setattr(backend, "start", noted)
    starts, nbytes = [5 << 20, 0, 0, 1 << 19], 1 << 20
    got = fs.cat_ranges([str(path)] * 4, starts, [start + nbytes for start in starts])
    assert got == [CONTENT[start : start + nbytes] for start in starts]
    ops = columns[0]
    written = {int(dest) + ops.buffer.ctypes.data for dest in ops.dest}
    begins = [id(piece) + bytes.__basicsize__ - 1 for piece in got]
    assert written == {begin + at for begin in begins for at in range(0, nbytes, int(ops.length[0]))}


@pytest.mark.parametrize("is_urgent", [False, True])
def test_ops_are_short_where_urgent_reads_may_have_to_wait_for_them(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, *, is_urgent: bool
) -> None:
    """And those of a read that nobody waits for yet, which may be under way when urgent ones come."""
    backend, defaults, lengths, series = fs.channel.backend, fs.channel.backend.defaults, set(), set()
    start = backend.start

    def noted(ops: Any, lo: int, hi: int) -> Any:
        lengths.update(ops.length.tolist())
        series.add(ops.series_ops)
        return start(ops, lo, hi)

    monkeypatch.setattr(backend, "start", noted)
    monkeypatch.setattr(backend, "copy", lambda *_given: False)
    monkeypatch.setattr(Window, "expects_urgent", is_urgent)
    with fs.open(str(path)) as file:
        assert file.read() == CONTENT
    assert fs.read_ranges(str(path), [0, SIZE // 2], [SIZE // 2, SIZE]).to_pylist() == [
        CONTENT[: SIZE // 2],
        CONTENT[SIZE // 2 :],
    ]
    assert fs.cat_ranges([str(path)], [0], [SIZE]) == [CONTENT]
    urgent_bytes = defaults.series_op_bytes or defaults.short_op_bytes
    assert lengths == {urgent_bytes if is_urgent else defaults.max_op_bytes}
    assert series == {backend.series_ops if is_urgent else 1}
    lengths.clear()
    assert bytes(fs.submit_ranges(str(path), [0], [SIZE]).result()[0]) == CONTENT
    assert lengths == {defaults.short_op_bytes}
    assert backend.series_ops in series
    chosen = headrace.HeadraceFileSystem(target_protocol="file", scheduler=fs.channel.mode, max_op_bytes=SIZE)
    assert chosen.channel.op_bytes(str(path)) == chosen.channel.short_op_bytes == SIZE


def test_a_long_range_that_fails_fails_alone(path: Path, fs: headrace.HeadraceFileSystem) -> None:
    missing = str(path.with_name("missing.bin"))
    paths = [str(path), missing, str(path)]
    ends = [1 << 20, 1 << 20, SIZE + (1 << 20)]
    got = fs.cat_ranges(paths, [0, 0, SIZE - 10], ends, on_error="return")
    assert (got[0], got[2]) == (CONTENT[: 1 << 20], CONTENT[-10:])
    assert isinstance(got[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, [0, 0, 0], ends, on_error="raise")
    stats = fs.stats()
    assert (stats.in_flight_ops, stats.reserved_bytes) == (0, 0)


def test_long_ranges_that_are_given_up(
    path: Path, fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in the middle leaves nothing of those that were launched ahead."""
    monkeypatch.setattr(Window, "expects_urgent", False)  # or series would be granted at once
    backend = fs.channel.backend
    start, begun = backend.start, []

    def interrupted(ops: Any, lo: int, hi: int) -> Any:
        begun.append((lo, hi))
        if len(begun) == 4:
            raise KeyboardInterrupt
        return start(ops, lo, hi)

    if fs.mode == "lite":
        monkeypatch.setattr(backend, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fs.cat_ranges([str(path)] * 20, [0] * 20, [2 << 20] * 20)
        monkeypatch.undo()
    engine = fs.channel.engine
    with engine.lock, engine as hub:
        hub.validate()
        assert (hub.in_flight_ops, hub.budget.reserved_bytes) == (0, 0)
    assert fs.cat_ranges([str(path)], [5], [5 + LONG_BYTES]) == [CONTENT[5 : 5 + LONG_BYTES]]


@needs_nowait
def test_one_long_copy_beside_short_ones(path: Path, fs: headrace.HeadraceFileSystem) -> None:
    """Rows of one slice are probed by their own length: short ones keep the GIL."""
    path.read_bytes()
    starts = [0, 4_096 * 40, 1 << 20]
    ends = [4_096, 4_096 * 41, (1 << 20) + 200_000]
    assert fs.read_ranges(str(path), starts, ends).to_pylist() == [
        CONTENT[a:b] for a, b in zip(starts, ends, strict=True)
    ]


def test_pieces_of_a_range_that_is_half_in_the_page_cache(tmp_path: Path, scheduled_mode: str) -> None:
    path = tmp_path / "half.bin"
    path.write_bytes(CONTENT)
    drop(path)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 700_000, 0)
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    with fs.open(str(path), "rb") as file:
        assert file.read(3 << 20) == CONTENT[: 3 << 20]
