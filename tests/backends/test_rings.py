"""The ring: right bytes through full queues, refusals and faults; nothing freed, nothing left, no hang.

Faults are injected where the system calls are (`Kernel`). A read that is under way for as long as a test
wants is a read of an empty pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import re
import signal
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from headrace.backends import _direct, _ring, _rings
from headrace.backends import _linux as linux
from headrace.backends._direct import DirectColumns
from headrace.backends._files import LocalSource
from headrace.backends._ring import LinuxKernel, Ring
from headrace.backends._rings import Rings, probe
from headrace.backends.uring import FEW, UringBackend
from headrace.filesystem import HeadraceFileSystem
from headrace.testing.perform import Performer
from headrace.types import NOT_YET, Ops

pytestmark = pytest.mark.skipif(probe() is not None, reason="the kernel, or a sandbox, has no io_uring")

BLOCK = 100
MAP_FIXED_NOREPLACE = 0x100000
"""mmap(2)."""
SENT = b"headrace" * (FEW // 8)
"""What readers of a pipe share, in whatever order."""


class Faulty(LinuxKernel):
    """Answers io_uring_enter with the given errnos first, and lets so many entries through at a time."""

    def __init__(self, *errnos: int, at_once: int = 1 << 30, always: int = 0) -> None:
        super().__init__()
        self.errnos = list(errnos)
        self.at_once = at_once
        self.always = always
        self.calls = 0

    def enter(self, fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
        self.calls += 1
        if self.errnos:
            return -self.errnos.pop(0)
        if self.always:
            return -self.always
        allowed = min(submit, self.at_once)
        return super().enter(fd, allowed, least if allowed == submit else 0, keep_gil=keep_gil)


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "data.bin").write_bytes(np.random.default_rng(1).bytes(300_000))
    return str(tmp_path / "data.bin")


def backend_on(kernel: LinuxKernel, depth: int = 16) -> UringBackend:
    backend = UringBackend(LocalFileSystem())
    backend._rings = Rings(depth, kernel)
    return backend


def scattered(backend: UringBackend, path: str, n: int = 500, seed: int = 2) -> tuple[Ops, list[bytes]]:
    start = np.random.default_rng(seed).integers(0, 300_000 - BLOCK, n)
    length = np.full(n, BLOCK, np.int64)
    file, dest = np.zeros(n, np.int64), np.arange(n) * BLOCK
    ops = Ops.of([backend.open(path)], (file, start, length, dest), np.zeros(n * BLOCK, np.uint8))
    content = Path(path).read_bytes()
    return ops, [content[at : at + BLOCK] for at in start.tolist()]


def answers(ops: Ops) -> list[bytes]:
    assert not ops.errors
    pieces = zip(ops.dest.tolist(), ops.got.tolist(), strict=True)
    return [ops.buffer[dest : dest + got].tobytes() for dest, got in pieces]


def read(backend: UringBackend, path: str, **options: int) -> None:
    ops, expected = scattered(backend, path, **options)
    Performer(backend).perform(ops)
    assert answers(ops) == expected


@pytest.mark.parametrize("depth", [1, 2, 16, 1024])
def test_queues_that_wrap_around_many_times(path: str, depth: int) -> None:
    backend = backend_on(LinuxKernel(), depth)
    for seed in range(5):
        read(backend, path, n=1_111, seed=seed)
    ring = backend._rings.mine()
    assert ring is not None
    assert (ring.ring.in_flight, ring.ring.unsubmitted, len(ring._ops)) == (0, 0, 0)


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.EBUSY])
def test_a_kernel_that_is_busy_is_asked_again(path: str, number: int) -> None:
    kernel = Faulty(*[number] * 50)
    read(backend_on(kernel), path)
    assert not kernel.errnos
    assert kernel.calls > 50


def test_a_kernel_that_takes_a_few_entries_at_a_time(path: str) -> None:
    kernel = Faulty(at_once=3)
    read(backend_on(kernel), path)
    assert kernel.calls > 500 / 3


@pytest.mark.parametrize("kernel", [Faulty(errno.EAGAIN, errno.EBUSY), Faulty(at_once=3)])
def test_a_probe_leaves_nothing_behind(path: str, kernel: Faulty) -> None:
    """Nobody waits for it: what the kernel took later would keep the file open."""
    backend = backend_on(kernel, depth=1024)
    ops, expected = scattered(backend, path)
    assert backend.probe_rows(ops, 0, len(ops))
    assert answers(ops) == expected
    ring = backend._rings.mine()
    assert ring is not None
    assert (ring.ring.in_flight, len(ring._ops)) == (0, 0)


def test_a_completion_that_comes_late_spoils_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between filling and submitting; somebody else reads the rows; then they are submitted."""
    backend = backend_on(LinuxKernel(), depth=1024)
    ops, expected = scattered(backend, path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ring, "enter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.probe_rows(ops, 0, len(ops))
    on_threads(1, lambda: Performer(backend).perform(ops))
    assert answers(ops) == expected
    os.truncate(path, 0)
    backend.drain()
    assert ops.got.tolist() == [BLOCK] * len(ops)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EBADF, errno.EBADR, errno.ENXIO, errno.EFAULT])
def test_a_ring_that_breaks_is_replaced(path: str, number: int, caplog: pytest.LogCaptureFixture) -> None:
    backend = backend_on(Faulty(number))
    read(backend, path)
    assert os.strerror(number) in caplog.text
    read(backend, path)
    assert len(backend._rings) == 1


def test_signals_are_no_refusals(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """As those of a profiler, while a read of a slow disk is waited for."""
    kernel = Faulty(*[errno.EINTR] * (_ring._PATIENCE + 50))
    read(backend_on(kernel), path)
    assert not kernel.errnos
    assert not caplog.records


def test_a_ring_that_took_nothing_before_it_broke_is_let_go_of(path: str) -> None:
    """As where a thread's id was used again."""
    backend = backend_on(Faulty(errno.EEXIST))
    ring = backend._rings.mine()
    assert ring is not None
    ops, _ = scattered(backend, path)
    buffer = weakref.ref(ops.buffer)
    backend.probe_rows(ops, 0, len(ops))
    assert ring.ring.in_flight == ring.ring.unsubmitted > 0
    assert backend._rings.mine() is None
    del ops
    gc.collect()
    assert (ring.ring.fd, buffer() is None) == (-1, True)


def test_a_ring_that_took_something_before_it_broke_is_kept() -> None:
    kernel = Faulty()
    backend = backend_on(kernel)
    ops, write_to = pipe_ops()
    backend.start(ops, 0, len(ops))
    buffer = weakref.ref(ops.buffer)
    kernel.errnos = [errno.EBADF]
    backend.drain()
    assert backend._rings.mine() is None
    del ops
    gc.collect()
    assert buffer() is not None
    os.close(write_to)


def test_a_kernel_that_is_busy_for_ever_does_not_hang_anybody(path: str) -> None:
    backend = backend_on(Faulty(always=errno.EAGAIN))
    read(backend, path)


@pytest.mark.parametrize("result", [-errno.EAGAIN, -errno.EINTR, -errno.EIO, -errno.EPERM, 0, 1, BLOCK - 1])
def test_a_read_that_fails_or_is_short_is_done_again(
    path: str, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays wrong then is the file's own: its end, or its error."""
    completions = Ring.completions

    def spoilt(ring: Ring) -> Any:
        tokens, results = completions(ring)
        results[::3] = result
        return tokens, results

    monkeypatch.setattr(Ring, "completions", spoilt)
    read(backend_on(LinuxKernel()), path)


def test_an_error_that_stays_is_the_ops_own(path: str) -> None:
    backend = backend_on(LinuxKernel())
    ops, expected = scattered(backend, path, n=40)
    gone = backend.open(path)
    os.close(gone.fds.pop())
    gone.fd = 1_000_000
    ops.sources.append(gone)
    ops.file[10:20] = 1
    Performer(backend).perform(ops)
    assert sorted(ops.errors) == list(range(10, 20))
    assert {error.errno for error in ops.errors.values()} == {errno.EBADF}  # type: ignore[attr-defined]
    ops.errors.clear()
    assert [*answers(ops)[:10], *answers(ops)[20:]] == [*expected[:10], *expected[20:]]


def test_a_file_that_shrank_is_short(path: str) -> None:
    backend = backend_on(LinuxKernel())
    ops, expected = scattered(backend, path)
    os.truncate(path, 150_050)
    Performer(backend).perform(ops)
    left = np.clip(150_050 - ops.start, 0, BLOCK).tolist()
    assert ops.got.tolist() == left
    assert answers(ops) == [data[:count] for data, count in zip(expected, left, strict=True)]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("longest", [1, 512, 4096, 70_000, 290_000])
@pytest.mark.parametrize("n", [1, 20, 300])
def test_direct_reads_of_any_offset_and_length(path: str, aligned: bool, longest: int, n: int) -> None:
    backend = backend_on(LinuxKernel())
    backend._is_direct = True
    rng = np.random.default_rng(n + longest)
    start = rng.integers(0, 300_000, n)
    length = rng.integers(0, longest, n, endpoint=True)
    if aligned:
        start, length = start & -4096, np.maximum(length & -4096, 4096)
    dest = np.cumsum(length) - length
    source = backend.open(path)
    buffer = np.frombuffer(mmap.mmap(-1, int(length.sum()) + 1), np.uint8)
    ops = Ops.of([source], (np.zeros(n, np.int64), start, length, dest), buffer)
    Performer(backend).perform(ops)
    content = Path(path).read_bytes()
    assert answers(ops) == [content[a : a + b] for a, b in zip(start.tolist(), length.tolist(), strict=True)]
    assert not source.direct_fd >= 0 or not ops.state.columns.bounces, "bounce buffers are gone"


def direct_backend() -> UringBackend:
    backend = backend_on(LinuxKernel())
    backend._is_direct = True
    return backend


@pytest.mark.parametrize("longest", [BLOCK, 290_000])
def test_a_file_that_refuses_to_be_read_directly_takes_no_other_with_it(
    path: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one request; its filesystem is asked when it is opened, and not again."""
    other = f"{path}.refusing"
    Path(other).write_bytes(np.random.default_rng(5).bytes(300_000))
    plainly, asked = os.open, []

    def refusing(name: str, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            asked.append(name)
            if name == other:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        return plainly(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)
    backend = direct_backend()
    sources = [backend.open(path), backend.open(other)]
    contents = [Path(name).read_bytes() for name in (path, other)]
    rng = np.random.default_rng(longest)
    for _ in range(2):
        start, length = rng.integers(0, 300_000, 40), rng.integers(1, longest, 40, endpoint=True)
        file, dest = np.arange(40) % 2, np.cumsum(length) - length
        ops = Ops.of(sources, (file, start, length, dest), np.zeros(int(length.sum()), np.uint8))
        Performer(backend).perform(ops)
        rows = zip(file.tolist(), start.tolist(), length.tolist(), strict=True)
        assert answers(ops) == [contents[of][at : at + count] for of, at, count in rows]
        if sources[0].direct_fd >= 0:  # else the folder of this test is where all refuse
            assert set(ops.state.columns.fd.tolist()) == {sources[0].direct_fd, sources[1].fd}
    assert (sources[1].direct_fd, asked) == (-1, [path, other])


def test_a_file_that_refuses_once_it_is_read_is_asked_once(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with blocks longer than a page: its filesystem says so to a read, and not to who opens it."""
    completions, told = Ring.completions, []

    def refusing(ring: Ring) -> Any:
        tokens, results = completions(ring)
        results[:] = -errno.EINVAL
        told.extend(results.tolist())
        return tokens, results

    backend = direct_backend()
    ops, expected = scattered(backend, path, n=8)
    (source,) = ops.sources
    if source.direct_fd < 0:
        pytest.skip("the folder of this test is where all refuse")
    monkeypatch.setattr(Ring, "completions", refusing)
    for _ in range(2):
        Performer(backend).perform(ops)
        assert answers(ops) == expected
        ops = Ops.of([source], (ops.file, ops.start, ops.length, ops.dest), np.zeros_like(ops.buffer))
    assert (source.direct_fd, len(told)) == (-1, 8)
    del source, ops
    gc.collect()
    names = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert path not in names, "both of its descriptors are closed with it"


def direct_filesystem(mode: str) -> HeadraceFileSystem:
    """With 32 ops in flight at the most, and an engine of its own: another's would have its own limits."""
    return HeadraceFileSystem(
        fs=LocalFileSystem(),
        scheduler=mode,
        uring_direct=True,
        process_io_limit=32,
        buffer_bytes=(1 << 36) + 32,
    )


def test_bounce_buffers_live_as_long_as_their_slice(
    path: str, monkeypatch: pytest.MonkeyPatch, scheduled_mode: str
) -> None:
    """Not as long as the request, of a million short ranges perhaps, each of which has a block."""
    fs = direct_filesystem(scheduled_mode)
    place, held = DirectColumns.place, []

    def placed(columns: DirectColumns, lo: int, hi: int) -> bool:
        is_placed = place(columns, lo, hi)
        held.append(len(columns.bounces))
        return is_placed

    monkeypatch.setattr(DirectColumns, "place", placed)
    if fs.channel.backend.open(path).direct_fd < 0:
        pytest.skip("the filesystem refuses direct reads")
    starts = [(k * 7919) % 290_000 | 1 for k in range(600)]
    found = fs.cat_ranges([path] * 600, starts, [start + 10 for start in starts], max_gap=0)
    content = Path(path).read_bytes()
    assert found == [content[start : start + 10] for start in starts]
    assert len(held) >= 600 / 32
    assert max(held) < 10


def test_no_file_is_opened_for_a_look_at_the_page_cache_that_direct_reads_go_around(
    path: str, monkeypatch: pytest.MonkeyPatch, scheduled_mode: str
) -> None:
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler=scheduled_mode, uring_direct=True)
    make_source, opened = UringBackend.make_source, []

    def noted(backend: UringBackend, name: str) -> LocalSource:
        opened.append(name)
        return make_source(backend, name)

    monkeypatch.setattr(UringBackend, "make_source", noted)
    assert fs.cat_ranges([path] * 30, [*range(30)], [40] * 30)[29] == Path(path).read_bytes()[29:40]
    assert opened == [path]


@pytest.mark.parametrize("refused", [1, 1000])
def test_direct_reads_without_memory_for_a_bounce_buffer_are_plain_ones(
    path: str, monkeypatch: pytest.MonkeyPatch, scheduled_mode: str, refused: int
) -> None:
    fs = direct_filesystem(scheduled_mode)
    refusals, plain = iter([errno.ENOMEM] * refused), mmap.mmap

    def mapped(*args: Any) -> mmap.mmap:
        code = next(refusals, 0)
        if code:
            raise OSError(code, os.strerror(code))
        return plain(*args)

    monkeypatch.setattr(_direct.mmap, "mmap", mapped)
    starts = [5_000 * k + 7 for k in range(50)]
    found = fs.cat_ranges([path] * 50, starts, [start + 10 for start in starts], max_gap=0)
    content = Path(path).read_bytes()
    assert found == [content[start : start + 10] for start in starts]


@pytest.mark.parametrize(("nbytes", "is_kept"), [(1000, True), (100_000, False)])
def test_long_direct_reads_are_submitted_with_the_gil_let_go(path: str, nbytes: int, is_kept: bool) -> None:
    kernel = LinuxKernel()
    backend = backend_on(kernel)
    backend._is_direct = True
    how: list[bool] = []
    enter = kernel.enter

    def noted(fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
        how.extend([keep_gil] if submit else [])
        return enter(fd, submit, least, keep_gil=keep_gil)

    kernel.enter = noted  # type: ignore[method-assign]
    zero, length = np.zeros(1, np.int64), np.array([nbytes])
    ops = Ops.of([backend.open(path)], (zero, zero + 5, length, zero), np.zeros(nbytes, np.uint8))
    if not isinstance(backend._columns(ops), DirectColumns):
        pytest.skip("the filesystem refuses direct reads")
    Performer(backend).perform(ops)
    assert answers(ops) == [Path(path).read_bytes()[5 : 5 + nbytes]]
    assert how == [is_kept]


@pytest.mark.parametrize("is_there_another", [False, True])
def test_bounce_buffers_are_kept_where_a_ring_was_lost(path: str, is_there_another: bool) -> None:
    """The kernel may have taken what it answers only later (I9)."""
    backend = backend_on(LinuxKernel())
    backend._is_direct = True
    ops, expected = scattered(backend, path)
    ops.start += 1
    rows = backend.start(ops, 0, len(ops))
    columns = ops.state.columns
    ring = backend._rings.mine()
    assert ring is not None
    if not isinstance(columns, DirectColumns):
        pytest.skip("the filesystem refuses direct reads")
    ring.is_broken = True
    if is_there_another:
        assert backend._rings.mine() is None
        assert backend._rings.mine() is not None
    for some in np.array_split(rows, 3):
        backend.finish(ops, some)
    assert len(expected) == len(answers(ops))
    assert list(columns.bounces) == [0]


@pytest.mark.parametrize("at_line", ["entry", "copied", "counted"])
def test_direct_reads_that_an_exception_cut_are_whole_nowhere(
    path: str, monkeypatch: pytest.MonkeyPatch, at_line: str
) -> None:
    """A signal handler's, say: what lies in a bounce buffer must not pass for delivered."""
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite", uring_direct=True)
    take, cut = DirectColumns.take, []

    class Counted(np.ndarray[Any, Any]):
        """Raises when it is told what was delivered, or that it is there."""

        def __setitem__(self, rows: Any, values: Any) -> None:
            if at_line == "counted":
                super().__setitem__(rows, values)
            raise TimeoutError("the alarm")

    def taking(columns: DirectColumns, ops: Ops, rows: Any) -> None:
        if cut:
            take(columns, ops, rows)
            return
        cut.append(True)
        if at_line == "entry":
            raise TimeoutError("the alarm")
        ops.got = ops.got.view(Counted)  # type: ignore[misc]
        try:
            take(columns, ops, rows)
        finally:
            ops.got = ops.got.view(np.ndarray)  # type: ignore[misc]

    monkeypatch.setattr(DirectColumns, "take", taking)
    content = Path(path).read_bytes()
    starts = [5_000 * k + 7 for k in range(40)]
    got = fs.cat_ranges([path] * 40, starts, [start + 100 for start in starts])
    assert any(isinstance(one, TimeoutError) for one in got) == bool(cut)
    assert all(
        isinstance(one, TimeoutError) or one == content[start : start + 100]
        for one, start in zip(got, starts, strict=True)
    )


# -- reads under way


def pipe_ops(n: int = FEW) -> tuple[Ops, int]:
    """Return `n` reads of one byte each that are under way until somebody writes, and where to write."""

    class Source:
        path = "a pipe"

        def __init__(self) -> None:
            self.fd, self.other_end = os.pipe()

        def __del__(self) -> None:
            os.close(self.fd)

    source = Source()
    one, zero = np.ones(n, np.int64), np.zeros(n, np.int64)
    return Ops.of([source], (zero, zero, one, np.arange(n)), np.zeros(n, np.uint8)), source.other_end


def test_no_buffer_is_freed_while_the_kernel_may_write_to_it() -> None:
    """A request is abandoned in mid-flight and everybody forgets it; then its bytes come."""
    backend = backend_on(LinuxKernel())
    ops, write_to = pipe_ops()
    assert backend.start(ops, 0, len(ops)).tolist() == list(range(FEW))
    buffer, watched = weakref.ref(ops.buffer), ops.buffer
    address = watched.ctypes.data
    del ops, watched
    gc.collect()
    held = buffer()
    assert held is not None
    assert held.ctypes.data == address
    os.write(write_to, SENT)
    backend.drain()
    assert sorted(held.tobytes()) == sorted(SENT), "written where it was to go"
    del held
    gc.collect()
    assert buffer() is None, "and freed afterwards"
    os.close(write_to)


def test_nor_where_the_first_part_of_a_request_is_done(path: str) -> None:
    """A slice goes to the ring in parts; when the first is complete, nothing is in flight for a moment."""
    backend = backend_on(LinuxKernel(), depth=1024)
    ops, _ = scattered(backend, path, n=_rings.GIL_ROWS + 8)
    waiting, write_to = pipe_ops()
    ops.sources.append(waiting.sources[0])
    ops.file[-8:], ops.length[-8:] = 1, 1
    Path(path).read_bytes()
    assert backend.start(ops, 0, len(ops)).tolist() == list(range(_rings.GIL_ROWS, len(ops)))
    buffer = weakref.ref(ops.buffer)
    del ops, waiting
    gc.collect()
    assert buffer() is not None
    os.write(write_to, SENT)
    backend.drain()
    gc.collect()
    assert buffer() is None
    os.close(write_to)


def test_what_the_page_cache_holds_is_complete_at_once(path: str) -> None:
    backend = backend_on(LinuxKernel(), depth=64)
    ops, expected = scattered(backend, path, n=3 * _rings.GIL_ROWS + 5)
    Path(path).read_bytes()
    assert backend.start(ops, 0, len(ops)).tolist() == []
    assert answers(ops) == expected


def test_an_interrupt_between_submission_and_completion_loses_nothing() -> None:
    backend = backend_on(LinuxKernel())
    ops, write_to = pipe_ops()
    backend.start(ops, 0, len(ops))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            backend.finish(ops, np.arange(FEW))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (ops.got == NOT_YET).all()
    os.write(write_to, SENT)
    backend.finish(ops, np.arange(FEW))
    assert sorted(ops.buffer.tobytes()) == sorted(SENT)
    os.close(write_to)


def test_a_read_in_between_does_without_the_ring(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler's, or a finaliser's, while the thread is inside its ring."""
    backend = backend_on(LinuxKernel())
    completions, nested = Ring.completions, []

    def interrupted(ring: Ring) -> Any:
        if not nested:
            nested.append(True)
            read(backend, path, seed=9)
        return completions(ring)

    monkeypatch.setattr(Ring, "completions", interrupted)
    read(backend, path)
    assert nested


def test_a_read_while_columns_are_made_may_wait_for_other_threads(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler's, which the loop thread starts: it makes columns, too."""
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite")
    make, nested = UringBackend._make_columns, list[Any]()
    if fs.channel.backend.name != "uring":
        pytest.skip("another backend reads here")
    content = Path(path).read_bytes()
    start = np.random.default_rng(3).integers(0, 300_000 - BLOCK, 500)

    def interrupted(backend: UringBackend, ops: Ops) -> Any:
        if not nested:
            nested.append(None)
            nested[0] = fs.submit_ranges(path, start, start + BLOCK).result(10)
        return make(backend, ops)

    monkeypatch.setattr(UringBackend, "probe_rows", lambda *_, **__: False)
    monkeypatch.setattr(UringBackend, "_make_columns", interrupted)
    outer = fs.read_ranges(path, start + 1, start + 1 + BLOCK)
    assert outer.to_pylist() == [content[at + 1 : at + 1 + BLOCK] for at in start.tolist()]
    assert nested[0].to_pylist() == [content[at : at + BLOCK] for at in start.tolist()]


def test_the_short_end_of_a_batch_is_on_the_ring_too(path: str) -> None:
    """What calls one by one need is made for all rows: for three of a million that costs too much."""
    backend = backend_on(LinuxKernel())
    ops, expected = scattered(backend, path, n=FEW + 3)
    assert backend.probe_rows(ops, 0, FEW)
    assert backend.probe_rows(ops, FEW, FEW + 3)
    assert answers(ops) == expected
    assert ops.state.iovec is None


def test_two_requests_of_one_thread_on_one_ring(path: str) -> None:
    backend = backend_on(LinuxKernel(), depth=256)
    waiting, write_to = pipe_ops()
    backend.start(waiting, 0, len(waiting))
    read(backend, path)
    os.write(write_to, SENT)
    backend.finish(waiting, np.arange(FEW))
    assert sorted(waiting.buffer.tobytes()) == sorted(SENT)
    os.close(write_to)


def test_a_ring_of_another_thread_is_left_as_it_is_while_something_is_in_flight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the end of the program, of a daemon thread whose variables go on the main thread."""
    backend = backend_on(LinuxKernel())
    ops, write_to = pipe_ops()
    is_started, is_seen = threading.Event(), threading.Event()
    rings: list[Any] = []

    def begin() -> None:
        backend.start(ops, 0, FEW)
        rings.append(backend._rings.mine())
        is_started.set()
        is_seen.wait()
        rings[0].drain()
        rings[0].close()

    thread = threading.Thread(target=begin)
    thread.start()
    assert is_started.wait(60)
    backend._rings.close_one(rings[0])
    assert not caplog.records
    assert not rings[0].is_broken
    assert rings[0].ring.in_flight == FEW
    assert [kept is ops for kept in rings[0]._ops.values()] == [True]
    os.write(write_to, SENT)
    is_seen.set()
    thread.join()
    assert sorted(ops.buffer.tobytes()) == sorted(SENT)
    os.close(write_to)


def test_a_forked_child_has_rings_of_its_own(path: str) -> None:
    backend = UringBackend(LocalFileSystem())
    waiting, write_to = pipe_ops()
    backend.start(waiting, 0, len(waiting))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            read(backend, path)
            own = backend._rings.mine()
            status = 0 if own is not None and own.ring.pid == os.getpid() else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    os.write(write_to, SENT)
    backend.finish(waiting, np.arange(FEW))
    assert sorted(waiting.buffer.tobytes()) == sorted(SENT), "the parent's goes on"
    read(backend, path)
    os.close(write_to)


def try_a_ring(_backend: UringBackend, _path: str) -> None:
    assert probe.__wrapped__() is None


@pytest.mark.parametrize("work", [try_a_ring, read])
@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LinuxKernel, "setup"),
        (LinuxKernel, "register"),
        (Ring, "_mapping"),
        (_ring._Mapping, "hide"),
        (Ring, "_hide"),
        (Ring, "fill"),
        (LinuxKernel, "enter"),
        (Ring, "completions"),
    ],
)
def test_a_child_that_a_signal_handler_forks_while_there_is_a_new_ring_goes_on(
    path: str,
    work: Any,
    kind: Any,
    name: str,
    *,
    is_after: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the middle of the parent's probe, or of its thread's first read, without the ring."""
    backend, pids, function = backend_on(LinuxKernel(), depth=1024), [], getattr(kind, name)

    def forking(*args: Any, **options: Any) -> Any:
        answer = function(*args, **options) if is_after else None
        if not pids:
            pids.append(os.fork())
        return answer if is_after else function(*args, **options)

    monkeypatch.setattr(kind, name, forking)
    try:
        work(backend, path)
        if not pids[0]:
            read(backend_on(LinuxKernel()), path)
            assert not [record for record in caplog.records if record.levelname == "WARNING"]
            os._exit(0)
    finally:
        if not all(pids):
            os._exit(1)
    assert os.waitpid(pids[0], 0)[1] == 0
    read(backend, path)


def descriptors_of(found: os.stat_result) -> int:
    """Count those that this process has of a ring."""
    kept = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            kept += os.path.samestat(link.stat(), found)
    return kept


def is_of_a_ring(address: int) -> bool:
    """Whether memory of a ring is mapped there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.partition(" ")[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return line.endswith("anon_inode:[io_uring]")
    return False


def test_a_ring_goes_with_its_last_descriptor_and_its_last_array() -> None:
    ring = Ring(8, LinuxKernel())
    found = os.fstat(ring.fd)
    assert descriptors_of(found) == 1
    tail = ring._sq_tail
    address = tail.ctypes.data
    ring.close()
    assert descriptors_of(found) == 0
    assert tail[0] == 0
    assert is_of_a_ring(address)
    del tail
    gc.collect()
    assert not is_of_a_ring(address)


def test_a_forked_child_keeps_the_memory_that_it_has_where_a_ring_was() -> None:
    """And of the ring nothing: it would live as long as the child."""
    rings = Rings(16, LinuxKernel())
    ring = rings.mine()
    assert ring is not None
    head = ring.ring._sq_head
    address = head.ctypes.data & -mmap.PAGESIZE
    found = os.fstat(ring.ring.fd)
    take = ctypes.CDLL(None).mmap
    take.restype = ctypes.c_void_p
    take.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pid = os.fork()
    if not pid:
        status = 1
        try:
            if take(address, mmap.PAGESIZE, protection, flags | MAP_FIXED_NOREPLACE, -1, 0) == address:
                ctypes.memset(address, 7, 1)
                rings.forget()
                del head, ring  # the last that is mapped there
                gc.collect()
                status = 2 * (ctypes.string_at(address, 1) != b"\7") + 4 * descriptors_of(found)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    rings.close_one(ring)


# -- series


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel tell nobody what the page cache holds: a series of that would need no ring."""
    monkeypatch.setattr("headrace.backends._linux.is_cached", lambda *_given: False)


def pipes_ops(n: int, series_ops: int) -> tuple[Ops, list[int]]:
    """Return reads of a byte of a pipe each, in series, and where to write."""
    made = [pipe_ops(1) for _ in range(n)]
    one, zero, rows = np.ones(n, np.int64), np.zeros(n, np.int64), np.arange(n)
    ops = Ops.of([ops.sources[0] for ops, _ in made], (rows, zero, one, rows), np.zeros(n, np.uint8))
    ops.series_ops = series_ops
    return ops, [write_to for _, write_to in made]


def test_of_a_series_one_read_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are there stay where they are until the read before is done; other series do not wait."""
    backend = backend_on(LinuxKernel())
    ops, write_to = pipes_ops(6, series_ops=3)
    for k in (1, 2, 3):
        os.write(write_to[k], b"%d" % k)
    started = backend.start(ops, 0, 6)
    assert started.tolist() == [0, 1, 2, 4, 5], "the second series began, and met an empty pipe"
    backend._rings.mine().ring.enter()  # type: ignore[union-attr]
    assert (ops.got == [-1, -1, -1, 1, -1, -1]).all()
    os.write(write_to[0], b"0")
    assert backend.finish_some(ops, started, 3).tolist() == [True, True, True, False, False]
    for k in (4, 5):
        os.write(write_to[k], b"%d" % k)
    backend.finish(ops, started)
    assert ops.buffer.tobytes() == b"012345"
    for fd in write_to:
        os.close(fd)


@pytest.mark.parametrize(
    "kernel", [LinuxKernel(), Faulty(at_once=3), Faulty(*[errno.EAGAIN, errno.EBUSY] * 9)]
)
@pytest.mark.parametrize("depth", [1, 2, 16, 64])
@pytest.mark.usefixtures("uncached")
def test_series_through_full_queues(path: str, kernel: LinuxKernel, depth: int) -> None:
    backend = backend_on(kernel, depth)
    for seed in range(3):
        ops, expected = scattered(backend, path, n=113, seed=seed)
        ops.series_ops = 8
        Performer(backend).perform(ops)
        assert answers(ops) == expected


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_a_series_that_does_not_fit_goes_on_when_it_is_done(path: str, depth: int, uncached: None) -> None:
    """I1: never are more under way than series, however small the queues are."""
    most: list[int] = []

    class Watched(LinuxKernel):
        def enter(self, fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
            ring = backend._rings.mine(is_made=False) or made[0]
            made[:] = [ring]
            sent = ring.ring.in_flight
            heads = np.flatnonzero(ring.ring._sqes["flags"][:sent] == 0)
            most.append(len(heads))
            return super().enter(fd, submit, least, keep_gil=keep_gil)

    made: list[Any] = []
    backend = backend_on(Watched(), depth)
    made.append(backend._rings.mine())
    ops, expected = scattered(backend, path, n=40)
    ops.series_ops = 40
    Performer(backend).perform(ops)
    assert answers(ops) == expected
    assert max(most) == 1


@pytest.mark.usefixtures("uncached")
def test_a_series_that_the_end_of_the_file_cuts_is_read_on(path: str) -> None:
    """A short read takes those after it out of the ring: whether the file has them is asked by `preadv`."""
    backend = backend_on(LinuxKernel())
    ops, expected = scattered(backend, path, n=20)
    ops.series_ops = 20
    ops.start[5], ops.start[9] = 300_000 - 7, 400_000
    Performer(backend).perform(ops)
    content = Path(path).read_bytes()
    expected[5], expected[9] = content[-7:], b""
    assert answers(ops) == expected


@pytest.mark.usefixtures("uncached")
def test_a_thread_without_a_ring_sets_nothing_of_a_series_going(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that misses would start all of its reads at once."""
    monkeypatch.setattr(_rings, "MOST_RINGS", 0)
    backend = backend_on(LinuxKernel())
    ops, expected = scattered(backend, path, n=20)
    ops.series_ops = 4
    assert backend.start(ops, 0, 20).tolist() == list(range(20))
    assert (ops.got == NOT_YET).all()
    backend.finish(ops, np.arange(20))
    assert answers(ops) == expected


def test_a_series_that_the_page_cache_holds_is_complete_at_once(path: str) -> None:
    """So its ops are hits, which the window is not told of."""
    backend = backend_on(LinuxKernel())
    ops, expected = scattered(backend, path, n=20)
    ops.series_ops = 4
    source = ops.sources[0]
    Path(path).read_bytes()
    if not linux.is_cached(source.fd, 0, 1):
        pytest.skip("no cachestat (Linux 6.5), or not for us")
    assert backend.start(ops, 0, 20).tolist() == []
    assert answers(ops) == expected


@pytest.mark.parametrize("direct", [False, True])
def test_direct_reads_are_in_no_series(direct: bool) -> None:
    """The end of a file is not aligned: it would be short, and end the series."""
    backend = UringBackend(LocalFileSystem())
    backend.configure(uring_queue_depth=None, uring_direct=direct)
    assert (backend.series_ops > 1) == (not direct)


# -- threads


def open_rings() -> set[str]:
    """Return the descriptors of rings: what else other tests' threads leave open, or close, says nothing."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # that of the listing itself
            if "io_uring" in os.readlink(f"/proc/self/fd/{name}"):  # noqa: PTH115
                found.add(name)
    return found


def on_threads(count: int, work: Any) -> None:
    """Run `work` on so many threads, all of which are there at once."""
    failed: list[BaseException] = []
    together = threading.Barrier(count)

    def run() -> None:
        try:
            together.wait(30)
            work()
            together.wait(30)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_ring_goes_with_its_thread(path: str) -> None:
    backend = backend_on(LinuxKernel())
    read(backend, path)
    gc.collect()
    before = open_rings()
    for _ in range(3):
        on_threads(8, lambda: read(backend, path))
    assert (len(backend._rings), open_rings() - before) == (1, set())


def test_a_read_while_a_ring_is_made_leaves_no_second_one(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler's, which makes one for the same thread."""
    backend, make, nested = backend_on(LinuxKernel()), _rings.ThreadRing, []

    def interrupted(ring: Ring) -> Any:
        if not nested:
            nested.append(True)
            read(backend, path, seed=9)
        return make(ring)

    monkeypatch.setattr(_rings, "ThreadRing", interrupted)
    before = open_rings()

    def work() -> None:
        read(backend, path)
        read(backend, path)
        assert len(open_rings() - before) == 1

    on_threads(1, work)
    assert nested
    assert (len(backend._rings), open_rings() - before) == (0, set())


def test_there_are_so_many_rings_and_no_more(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rings, "MOST_RINGS", 3)
    backend = backend_on(LinuxKernel())
    most: list[int] = []

    def work() -> None:
        read(backend, path)
        most.append(len(backend._rings))

    on_threads(8, work)
    assert max(most) == 3


def test_the_ring_of_a_thread_that_python_does_not_know_is_swept(path: str) -> None:
    """Arrow's threads have no variables that live from one call to the next."""
    backend = backend_on(LinuxKernel())
    backend._rings._ends = type("Nothing", (), {})()  # whatever is kept there goes with nobody
    thread = threading.Thread(target=lambda: read(backend, path))
    thread.start()
    thread.join()
    assert len(backend._rings) == 1
    read(backend, path)
    assert list(backend._rings._rings) == [threading.get_native_id()]


def test_a_ring_that_cannot_be_made_is_done_without(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = LinuxKernel()
    monkeypatch.setattr(kernel, "setup", lambda *_: -errno.ENOMEM)
    backend = backend_on(kernel)
    read(backend, path)
    assert len(backend._rings) == 0


class Full:
    """Rings with room for one, which a thread of its own has until it is told to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_rings, "MOST_RINGS", 1)
        self.rings = Rings(16, LinuxKernel())
        self._has_one, self._may_end = threading.Event(), threading.Event()
        self._holder = threading.Thread(target=self._hold)
        self._holder.start()
        self._has_one.wait(30)
        self.sweeps = 0
        monkeypatch.setattr(self.rings, "sweep", self._sweep)

    def _hold(self) -> None:
        self.rings.mine()
        self._has_one.set()
        self._may_end.wait(30)

    def _sweep(self) -> None:
        self.sweeps += 1
        Rings.sweep(self.rings)

    def end(self) -> None:
        self._may_end.set()
        self._holder.join()
        while _rings._is_listed(self._holder.native_id or 0):  # the kernel may still be at its end
            os.sched_yield()


def test_a_thread_that_is_refused_a_ring_does_not_look_for_one_at_every_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Full(monkeypatch)
    assert [full.rings.mine() for _ in range(_rings.UNHEARD + 1)] == [None] * (_rings.UNHEARD + 1)
    assert full.sweeps == 1
    full.end()
    assert full.rings.mine() is not None, "the next to ask gets what has become free"


def test_room_that_nobody_told_of_is_found_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that Python does not know ends without a word."""
    monkeypatch.setattr(_rings, "is_python_thread", lambda: False)
    full = Full(monkeypatch)
    assert full.rings.mine() is None
    full.end()
    found = [full.rings.mine() for _ in range(_rings.UNHEARD + 1)]
    assert found[:-1] == [None] * _rings.UNHEARD
    assert found[-1] is not None


def test_a_kernel_that_makes_no_ring_is_asked_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = LinuxKernel()
    rings = Rings(16, kernel)
    with monkeypatch.context() as patched, caplog.at_level("INFO", "headrace"):
        patched.setattr(kernel, "setup", lambda *_: -errno.ENOMEM)
        assert [rings.mine() for _ in range(_rings.UNHEARD + 1)] == [None] * (_rings.UNHEARD + 1)
    assert len(caplog.records) == 1
    assert rings.mine() is not None


# -- the probe


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("setup", -errno.ENOSYS, "Function not implemented"),
        ("setup", -errno.EPERM, "Operation not permitted"),
        ("setup", -errno.EINVAL, "Invalid argument"),
        ("register", -errno.EINVAL, "cannot read"),
    ],
)
def test_the_probe_says_why_not(method: str, answer: int, words: str) -> None:
    kernel = LinuxKernel()
    setattr(kernel, method, lambda *_: answer)
    before = open_rings()
    assert words in str(probe(kernel))
    assert open_rings() - before == set()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_the_probe_lacks_for_a_moment_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    kernel = LinuxKernel()
    with monkeypatch.context() as patched:
        patched.setattr(kernel, "setup", lambda *_: -code)
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            probe(kernel)
    assert probe(kernel) is None


def test_rings_are_kept_where_no_thread_can_be_seen(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, or with that of another namespace, all seem to be gone, those at work too."""
    backend = backend_on(LinuxKernel())
    mine = backend._rings.mine()
    assert mine is not None
    monkeypatch.setattr(_rings, "_is_listed", lambda _tid: False)
    other: list[Any] = []
    thread = threading.Thread(target=lambda: other.append(backend._rings.mine()))
    thread.start()
    thread.join()
    assert backend._rings.mine() is mine
    ops, expected = scattered(backend, path)
    Performer(backend).perform(ops)
    assert [bytes(ops.buffer[d : d + BLOCK]) for d in ops.dest.tolist()] == expected


def test_a_ring_is_tried_without_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have no folder that can be written to, and a disk may be full."""
    before = probe.__wrapped__()

    def refuse(*_args: Any, **_options: Any) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert probe.__wrapped__() == before
    monkeypatch.setattr(os, "memfd_create", refuse)
    assert "No usable" in probe.__wrapped__(), "then there is a reason, and no error"
