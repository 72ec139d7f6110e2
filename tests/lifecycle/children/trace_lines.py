"""Raises at every line of a read, one line a time, beside another thread's read.

Run by ``test_reentrancy.py``.  Arguments: a kind of read (target, mode and work), a file, the number
of this share of the lines and of the shares, as ``0/1``, and ``once`` or ``twice``.

Thread A traces its own read and raises `Injected`, a KeyboardInterrupt, at the n-th line that it
executes in headrace, for n = 0, 1, 2, ... until a read gets through undisturbed.  It is a new one each
time, so what a thread's first read makes is among the lines.  Thread B reads through the same engine
at the same time: it begins before A does, or, where the one that is there first serves both, as often when A
is interrupted.  After each round B has its bytes, nobody holds the engine's lock, its derived numbers agree
with the facts, and at rest nothing is reserved, in flight or open.  What is wrong is printed as JSON: the
line and what was found.

With ``twice`` each of these reads is interrupted once more while it leaves, at the m-th place, for m = 0,
1, 2, ... until it gets away.
"""

from __future__ import annotations

import functools
import gc
import inspect
import json
import linecache
import os
import re
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import slow
from soaking import descriptors

import headrace
from headrace.backends import fsspec_sync, registry
from headrace.backends.abc import BulkBackend, Defaults, PathSource, Verdict
from headrace.core.hedge import Hedge
from headrace.core.room import Room
from headrace.core.window import Window
from headrace.drivers import asynchronous_lite
from headrace.reader import LONG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIND, PATH, SHARE, TIMES = sys.argv[1:5]
PART, PARTS = map(int, SHARE.split("/"))
PACKAGE = str(Path(headrace.__file__).parent)
REST_S = 5.0
THREAD_B = ThreadPoolExecutor(
    1
)  # thread A is a new one in each round: what a thread's first read makes is traced
CONTENT = Path(PATH).read_bytes()
fsspec_sync.THREAD_SAFE |= {"slow.SlowFileSystem"}


class Injected(KeyboardInterrupt):
    """Stands for whatever a signal handler may raise."""


class Tracer:
    """Raises at the n-th line, if there are so many.

    Left out is what is no place for a signal. CPython looks for signals at the start of a function,
    after a call and at a jump backwards; a ``finally:``, an ``else:``, a ``try:`` and a ``pass`` have none of
    these, and neither has a ``with`` that is met again at its end, ``async`` or not, or the first line
    under a ``finally:``: between the last look in the block and a lock's release, which is C, or the
    start of ``__aexit__``, there is none.
    """

    def __init__(self, at: int, before: Callable[[], object]) -> None:
        self.at = at
        self.before = before
        self.count = 0
        self.where = ""
        self.entered: set[tuple[int, int]] = set()

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        kinds = _kinds(frame.f_code.co_filename)
        if kinds is None:
            return None
        if event == "line" and not self.is_excluded(frame, kinds[frame.f_lineno]):
            if self.count == self.at and not self.where:
                path, number = frame.f_code.co_filename, frame.f_lineno
                name = f"{os.path.relpath(path, PACKAGE)}:{frame.f_code.co_name}"
                self.where = f"{name}:{number}: {_line(path, number)}"
                self.before()
                raise Injected
            self.count += 1
        return self

    def is_excluded(self, frame: FrameType, kind: str) -> bool:
        if kind != "with":
            return kind == "no place"
        key = (id(frame), frame.f_lineno)
        self.entered ^= {key}
        return key not in self.entered


class Again:
    """Raises once more after the tracer did, at the n-th place where CPython looks for signals.

    Left out is where generators and coroutines go on: a profiler that raises there keeps them from their
    ``finally:``, which a signal does not.
    """

    def __init__(self, tracer: Tracer, at: int | None) -> None:
        self.tracer = tracer
        self.at = at
        self.count = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        is_ours = frame.f_code.co_filename.startswith(PACKAGE)
        if self.at is None or not self.tracer.where or self.where or not is_ours:
            return
        is_resumed = event == "call" and frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE)
        if event in {"call", "c_return"} and not is_resumed:
            if self.count == self.at:
                self.where = f"{event} in {frame.f_code.co_name}:{frame.f_lineno}"
                raise Injected
            self.count += 1


@functools.cache
def _kinds(path: str) -> list[str] | None:
    """Say what each line of a file of ours is to the tracer: "with", "no place" or "place"."""
    if not path.startswith(PACKAGE):
        return None
    return [_kind(path, number) for number in range(len(linecache.getlines(path)) + 1)]


def _kind(path: str, number: int) -> str:
    text = _line(path, number)
    if text.startswith(("with ", "async with ")):
        return "with"
    is_left_out = text in {"finally:", "else:", "try:", "pass"} or _is_first_under_finally(path, number)
    return "no place" if is_left_out else "place"


def _is_first_under_finally(path: str, number: int) -> bool:
    number -= 1
    while number > 0 and _line(path, number) in {"", "try:"}:
        number -= 1
    return _line(path, number) == "finally:"


@functools.cache
def _line(path: str, number: int) -> str:
    """Return it without its comment."""
    return re.sub(r"(^|  )#.*", "", linecache.getline(path, number).strip())


READS: dict[str, tuple[str, str, Callable[[Any], bytes]]] = {}
STEP, MANY, BLOCK = 5_000, 20, 64 << 10
WRITTEN = b"written"


def single(fs: Any) -> bytes:
    return bytes(fs.cat_file(PATH, start=100, end=200))


def few(fs: Any) -> bytes:
    return b"".join(fs.cat_ranges([PATH] * 3, [300, 0, 200], [310, 10, 210]))


def long(fs: Any) -> bytes:
    return b"".join(fs.cat_ranges([PATH] * 2, [0, 100], [LONG_BYTES, 100 + LONG_BYTES]))


def ranges(fs: Any) -> bytes:
    starts = [STEP * k for k in range(MANY)]
    return b"".join(fs.read_ranges(PATH, starts, [s + 10 for s in starts]).to_pylist())


def through_file(fs: Any) -> bytes:
    with fs.open(PATH, "rb", cache_type="none") as file:
        file.seek(100)
        return bytes(file.read(90_000))


def long_through_file(fs: Any) -> bytes:
    with fs.open(PATH, "rb") as file:
        file.seek(100)
        return bytes(file.read(LONG_BYTES + 5))


def read_ahead(fs: Any) -> bytes:
    """Read some blocks in a row: from the second on the next ones are asked for."""
    with fs.open(PATH, "rb", cache_type="none") as file:
        return b"".join(file.read(BLOCK) for _ in range(4))


def ranges_of_file(fs: Any) -> bytes:
    starts = [STEP * k for k in range(MANY)]
    with fs.open(PATH, "rb") as file:
        return b"".join(fs.read_ranges(file, starts, [s + 10 for s in starts]).to_pylist())


def submitted(fs: Any) -> bytes:
    return bytes(fs.submit_ranges(PATH, [100], [200]).result()[0])


def written(fs: Any) -> bytes:
    """Write a file beside it, which is counted in the window meanwhile."""
    fs.pipe_file(f"{PATH}.{threading.get_ident()}", WRITTEN)
    return WRITTEN


EXPECTED = {
    few: CONTENT[300:310] + CONTENT[:10] + CONTENT[200:210],
    long: CONTENT[:LONG_BYTES] + CONTENT[100 : 100 + LONG_BYTES],
    single: CONTENT[100:200],
    ranges: b"".join(CONTENT[STEP * k : STEP * k + 10] for k in range(MANY)),
    ranges_of_file: b"".join(CONTENT[STEP * k : STEP * k + 10] for k in range(MANY)),
    through_file: CONTENT[100:90_100],
    long_through_file: CONTENT[100 : 105 + LONG_BYTES],
    read_ahead: CONTENT[: 4 * BLOCK],
    submitted: CONTENT[100:200],
    written: WRITTEN,
}
TARGETS = {
    "local": "file",
    "cold": "file",
    "series": "file",
    "around": "file",
    "bulk": "file",
    "threaded": "slow",
    "async": "aslow",
    "hedged": "aslow",
}
WORK = {
    "single": single,
    "few": few,
    "long": long,
    "ranges": ranges,
    "fileranges": ranges_of_file,
    "file": through_file,
    "longfile": long_through_file,
    "ahead": read_ahead,
    "submitted": submitted,
    "written": written,
}


class FileInBulk(BulkBackend):
    """Stands for a native engine: it reads the file at once, and no line of it is ours."""

    name = "file-in-bulk"
    defaults = Defaults("standard", max_gap_bytes=0, max_op_bytes=1 << 20, io_parallelism=12)

    @classmethod
    def serves(cls, target: Any) -> bool:
        return True

    def device(self, path: str) -> str:
        return "bulk"

    def open(self, path: str, **options: Any) -> PathSource:
        return PathSource(path)

    def verdict(self, error: BaseException) -> Verdict:
        return Verdict(is_retryable=False)

    def perform(self, ops: Any, rows: Any) -> None:
        for row in rows.tolist():
            start = int(ops.start[row])
            ops.deliver(row, CONTENT[start : start + int(ops.length[row])])


def make(target: str, mode: str) -> Any:
    if target == "bulk":
        registry.backend_for = lambda target, *_, **__: FileInBulk(target)
    fs = headrace.HeadraceFileSystem(
        target_protocol=TARGETS[target], scheduler=mode, hedge=target == "hedged"
    )
    if target == "cold":
        miss_always(fs.channel.backend)
    elif target == "hedged":
        ask_always_twice()
    elif target == "series":
        Window.expects_urgent = True  # type: ignore[assignment,method-assign]
        assert fs.channel.op_bytes(PATH) < LONG_BYTES
    elif target == "around":
        leave_readahead_always(fs.channel.backend)
    return fs


def leave_readahead_always(backend: Any) -> None:
    """Have every file be read as one of which the kernel is ahead when urgent reads come."""
    make_source = backend.make_source
    Room.expects_before = lambda *_: True  # type: ignore[method-assign]

    def made(path: str) -> Any:
        source = make_source(path)
        source.followed = 0
        return source

    backend.make_source = made


def ask_always_twice() -> None:
    """Have every op be late as soon as it was asked for."""
    Hedge.delay_s = lambda _self, _length: 0.0  # type: ignore[method-assign]
    Hedge.may_send = lambda _self: True  # type: ignore[method-assign]


def miss_always(backend: Any) -> None:
    """Have the page cache hold nothing: no other test may have it dropped."""
    backend.probe = lambda _source, _start, _length: None
    backend.copy = lambda _source, _start, _out: False
    backend.probe_rows = lambda _ops, _lo, _hi, **_how: False
    backend.start = lambda _ops, lo, hi: np.arange(lo, hi)


def at_rest(fs: Any) -> str:
    """Wait until nothing is in flight, and say what is wrong then."""
    engine = fs.channel.engine
    deadline_s = time.monotonic() + REST_S
    while True:
        if TIMES == "twice" or KIND.endswith(("ahead", "written")):
            engine.catch_up()  # as the next read would, where a finaliser was cut, or the end of a write
        if not engine.lock.acquire(timeout=5):
            return "the engine's lock is held"
        try:
            engine.hub.settle(time.perf_counter())
            engine.hub.validate()
            found = engine.hub.in_flight_ops, engine.hub.budget.reserved_bytes, descriptors()[PATH]
            schedulers = engine.hub.schedulers.values()
            requests = [request for one in schedulers for request in one.requests.values()]
            uploading_ops = sum(one.room.uploads.ops for one in schedulers)
        except AssertionError as error:
            return f"validate: {error}"
        finally:
            engine.lock.release()
        # Interrupted twice, it may be the next read that tells the loop.
        is_idle = TIMES == "twice" or not getattr(fs.channel.driver, "has_work", bool)()
        if found == (0, 0, 0) and not (requests or uploading_ops) and is_idle:
            return ""
        if time.monotonic() > deadline_s:
            owed = f"to be settled: {list(engine.lost)}, uploading: {uploading_ops}"
            return f"in flight, reserved, open: {found}, {requests}, {owed}"
        time.sleep(0.001)
        gc.collect()  # the keeper had a task that held an interrupt, and its traceback the read


def interrupted(work: Callable[[Any], bytes], fs: Any, tracer: Tracer, again: Again) -> str:
    """Perform A's read; says what is wrong with its answer, if it got one."""
    if again.at is not None:
        sys.setprofile(again)
    sys.settrace(tracer)
    try:
        data = work(fs)
    except Injected:
        return ""
    except BaseException as error:  # noqa: BLE001
        if isinstance(error.__context__, Injected) or tracer.where:
            return ""  # the exception was swallowed by a finaliser, or became the op's own error
        return f"A: {error!r}"
    finally:
        sys.settrace(None)
        sys.setprofile(None)
    return "" if data == EXPECTED[work] else "A: wrong bytes"


def one_round(
    work: Callable[[Any], bytes], fs: Any, at: int, again_at: int | None = None
) -> tuple[str, str, list[str]]:
    """Say where A's read was interrupted, where it was once more, and what is wrong."""
    wrong: list[str] = []

    @functools.cache
    def other() -> Future[bytes]:
        return THREAD_B.submit(work, fs)

    tracer = Tracer(at, before=other)
    again = Again(tracer, again_at)
    # Else B might run the loop each time, and A, whose lines are counted, only wait.
    if at % 2 or not KIND.startswith(("async-lite", "hedged-lite")):
        other()
    one = threading.Thread(target=lambda: wrong.append(interrupted(work, fs, tracer, again)), daemon=True)
    one.start()
    one.join(REST_S)
    wait([other()], REST_S)
    if one.is_alive() or not other().done():
        wrong.append(f"hangs: A {one.is_alive()}, B {not other().done()}")
    elif other().exception() is not None:
        wrong.append(f"B: {other().exception()!r}")
    elif other().result() != EXPECTED[work]:
        wrong.append("B: wrong bytes")
    gc.collect()
    if not any(wrong):
        wrong.append(at_rest(fs))
    gc.freeze()  # what is left by now is no garbage, nor looked at in every round
    return tracer.where, again.where, [text for text in wrong if text]


def rounds(work: Callable[[Any], bytes], fs: Any) -> Iterator[tuple[int, str, str, list[str]]]:
    """Interrupt one read after another, and say of each what `one_round` says."""
    at, undisturbed = PART, 0
    while undisturbed < 2:  # whether B was first or not
        again_at = None if TIMES == "once" else 0
        where, again, wrong = one_round(work, fs, at, again_at)
        undisturbed = 0 if where else undisturbed + 1
        if where:
            yield at, where, again, wrong
        while again:
            again_at += 1  # type: ignore[operator]
            where, again, wrong = one_round(work, fs, at, again_at)
            yield at, where, again, wrong
        at += PARTS


def main() -> None:
    target, mode, what = KIND.split("-")
    fs, work = make(target, mode), WORK[what]
    asynchronous_lite.KEEPER_S = 0.01  # what is left by a read waits for it in most rounds
    threading.excepthook = lambda args: errors.append(repr(args.exc_value))
    for _ in range(3):
        assert work(fs) == EXPECTED[work]
    gc.collect()
    gc.freeze()
    at, count, found, functions = 0, 0, [], set()
    for at, where, again, wrong in rounds(work, fs):
        count += 1
        functions.update(where.split(":")[1:2])
        if wrong:
            found.append([at, where, again, wrong])
            if any(("hang" in text or "lock" in text) for text in wrong) or len(found) > 3:
                break
    answer = {"lines": at, "rounds": count, "functions": sorted(functions), "wrong": found}
    answer["errors"] = errors[:5]
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a lock that was left behind must be told, not waited for


errors: list[str] = []
slow.delay_s = 0.0
main()
