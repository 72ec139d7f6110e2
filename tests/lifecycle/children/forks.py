"""Forks, spawns and loses threads while reads are in flight; run by ``test_fork.py``.

Arguments: what to do, a protocol, a file.  The mode comes from the environment.  Ends with status
0 if all is right.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import slow
from forked import CHILD_S, wait_for_child

import headrace
from headrace import SchedulerClosedError
from headrace.backends._ring import LinuxKernel
from headrace.backends._rings import probe
from headrace.backends.fsspec_sync import instance_lock
from headrace.drivers import interrupts
from headrace.drivers.waiter import Waiter

WORK, PROTOCOL, PATH = sys.argv[1:4] if len(sys.argv) > 3 else ("", "file", "")
CONTENT = Path(PATH).read_bytes() if PATH else b""
READERS = 3


def check(fs: Any) -> None:
    """Read in every way, through the object that the parent made."""
    assert fs.cat_file(PATH, 10, 20) == CONTENT[10:20]
    assert fs.read_ranges(PATH, [0, 1000], [5, 1005]).to_pylist() == [CONTENT[:5], CONTENT[1000:1005]]
    assert bytes(fs.submit_ranges(PATH, [7], [9]).result()[0]) == CONTENT[7:9]
    with fs.open(PATH, "rb") as file:
        assert file.read(70_000) == CONTENT[:70_000]


async def check_async(fs: Any) -> None:
    """Await reads and a look, of which some are made by threads apart."""
    assert await fs._cat_ranges([PATH] * 2, [10, None], [20, 5]) == [CONTENT[10:20], CONTENT[:5]]
    assert await fs._cat_file(PATH, None, 7) == CONTENT[:7]
    assert (await fs._info(PATH))["size"] == len(CONTENT)


def fork_async(fs: Any) -> None:
    """Fork just after reads were awaited, while the threads that made them are idle; the child does so."""
    asyncio.run(check_async(fs))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(asyncio.wait_for(check_async(fs), CHILD_S / 2))
            status = 0
        except BaseException:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(status)
    assert_ended_well(pid)


def at_rest(fs: Any) -> None:
    deadline_s = time.monotonic() + CHILD_S
    stats = fs.stats()
    while stats.in_flight_ops or stats.reserved_bytes:
        assert time.monotonic() < deadline_s, stats
        gc.collect()
        time.sleep(0.001)
        stats = fs.stats()


def fork_in_flight(fs: Any, ending: str) -> None:
    """Fork while other threads read; the child reads, and ends in one of two ways."""
    is_over = threading.Event()
    wrong: list[str] = []

    def read_on() -> None:
        try:
            while not is_over.is_set():
                check(fs)
        except BaseException as error:  # noqa: BLE001
            wrong.append(repr(error))

    threads = [threading.Thread(target=read_on) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    held = fs.submit_ranges(PATH, [0], [100])
    file = fs.open(PATH, "rb")
    assert file.read(10) == CONTENT[:10]
    try:
        for start in range(10, 60, 10):
            pid = os.fork()
            if pid == 0:
                in_child(fs, file, held, start, ending)
            assert_ended_well(pid)
            assert file.read(10) == CONTENT[start : start + 10]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert bytes(held.result()[0]) == CONTENT[:100]
    assert not wrong, wrong


def assert_ended_well(pid: int) -> None:
    status = wait_for_child(pid)
    assert status == 0, f"the forked child ended with {status}"


def in_child(fs: Any, file: Any, held: Any, start: int, ending: str) -> None:
    """Read by what the parent made and opened; ends the process."""
    status = 1
    try:
        assert fs.stats().in_flight_ops == 0, "the parent's state came along"
        check(fs)
        assert file.read(20) == CONTENT[start : start + 20]
        refuses(held)
        assert headrace.wrap(fs.target).cat_file(PATH, 0, 9) == CONTENT[:9]
        assert fs.with_priority(-1).size(PATH) == len(CONTENT)
        at_rest(fs)
        status = 0
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(1)
    if ending == "exit":
        sys.exit(status)
    os._exit(status)


def refuses(held: Any) -> None:
    """Nobody performs what the parent submitted, and another of its threads may have held the lock."""
    assert held.done()
    assert not held.cancel()
    try:
        held.result()
    except headrace.SchedulerClosedError as error:
        assert "forked" in str(error)  # noqa: PT017
    else:
        message = "a read of the parent has a result in the child"
        raise AssertionError(message)


def fork_exit(fs: Any) -> None:
    fork_in_flight(fs, "exit")


def fork_quick_exit(fs: Any) -> None:
    fork_in_flight(fs, "_exit")


def fork_slow(fs: Any) -> None:
    """Fork with reads in flight that outlast the child."""
    slow.delay_s = 1.0
    file = fs.open(PATH, "rb")
    reads = [fs.submit_ranges(PATH, [start], [start + 10]) for start in range(0, 300, 100)]
    slow.has_begun.wait()
    pid = os.fork()
    if pid == 0:
        slow.delay_s = 0.0
        in_child(fs, file, reads[-1], 0, "_exit")
    assert_ended_well(pid)
    for start, read in zip(range(0, 300, 100), reads, strict=True):
        assert bytes(read.result()[0]) == CONTENT[start : start + 10]


def fork_close(fs: Any) -> None:
    """Fork while another thread reads a file, which the child closes, or forgets."""
    slow.delay_s = 1.0
    files = [fs.open(PATH, "rb", cache_type="none") for _ in range(2)]
    threads = [threading.Thread(target=file.read, args=(70_000,)) for file in files]
    for thread in threads:
        thread.start()
    slow.has_begun.wait()
    while not all(is_held(file) for file in files):
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        slow.delay_s = 0.0
        files.pop().close()
        file = files.pop()
        threads.clear()
        del file
        gc.collect()
        os._exit(0)
    assert_ended_well(pid)
    for thread in threads:
        thread.join()
    assert [file.tell() for file in files] == [70_000] * 2
    for file in files:
        file.close()


def fork_replaced(fs: Any) -> None:
    """Fork with an open file whose path is another file by then."""
    other = Path(f"{PATH}.new")
    other.write_bytes(CONTENT[::-1])
    file = fs.open(PATH, "rb", cache_type="none")
    assert file.read(10) == CONTENT[:10]
    other.replace(PATH)
    goes_on_in_a_child(file)
    Path(PATH).write_bytes(CONTENT)


def read_scattered(fs: Any) -> None:
    starts = [*range(0, 200_000, 1000)]
    found = fs.read_ranges(PATH, starts, [start + 10 for start in starts])
    assert found.to_pylist() == [CONTENT[start : start + 10] for start in starts]


def read_two(fs: Any) -> None:
    assert fs.cat_file(PATH, 10, 20) == CONTENT[10:20]
    with fs.open(PATH, "rb") as file:
        assert file.read(70_000) == CONTENT[:70_000]


class Forks:
    """Forks, where that is due, in the middle of what the main thread does."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.is_due = False
        self.is_child = False

    def before(self, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self.is_due and threading.current_thread() is threading.main_thread():
                self.is_due = False
                self.pids.append(os.fork())
                self.is_child = not self.pids[-1]
            return function(*args, **options)

        return call


def fork_inside(fs: Any) -> None:
    """Fork in the middle of reads, as a signal handler may, whose child goes on.

    What the child cannot finish is refused; what it reads then is read.
    """
    forks = Forks()
    for kind, name in ((LinuxKernel, "enter"), (Waiter, "wait")):
        setattr(kind, name, forks.before(getattr(kind, name)))
    for read in [read_scattered, read_two] * 5:
        forks.is_due = True
        try:
            read(fs)
        except SchedulerClosedError:
            if not forks.is_child:
                raise
        if forks.is_child:
            check(fs)
            read_scattered(fs)
            os._exit(0)
    assert forks.pids or probe() is not None
    for pid in forks.pids:
        assert_ended_well(pid)


def fork_at_a_lock(fs: Any) -> None:
    """Fork in the wait for a filesystem that another thread uses, and which is not thread-safe.

    It is looked at on this thread, and on one that is not Python's own.
    """
    wait_for = interrupts._wait_for
    interrupts.arm(for_arrow=True)  # as a scan is
    for is_watched in (False, True):
        forks, is_held = Forks(), threading.Event()

        def hold(forks: Forks = forks, is_held: threading.Event = is_held) -> None:
            with instance_lock(fs.target):
                is_held.set()
                while not forks.pids:
                    time.sleep(0.001)

        interrupts.is_watched = lambda is_watched=is_watched: is_watched
        interrupts._wait_for = lambda acquire, forks=forks: wait_for(forks.before(acquire))
        holder = threading.Thread(target=hold)
        holder.start()
        is_held.wait()
        forks.is_due = True
        try:
            size = fs.info(PATH)["size"]
        except SchedulerClosedError:
            if not forks.is_child:
                raise
            interrupts.arm(for_arrow=True)
            check(fs)
            size = fs.info(PATH)["size"]
        assert size == len(CONTENT)
        if forks.is_child:
            os._exit(0)
        holder.join()
        assert_ended_well(*forks.pids)


def fork_removed(fs: Any) -> None:
    file = fs.open(PATH, "rb", cache_type="none")
    assert file.read(10) == CONTENT[:10]
    Path(PATH).unlink()
    goes_on_in_a_child(file)


def fork_cached(fs: Any) -> None:
    """Fork with an open file of a filesystem whose files have caches; the child opens it as it was."""
    file = fs.open(PATH, "rb", cache_type="none", block_size=5000, priority=3)
    given = file._source.handle.options
    assert (given["cache_type"], given["block_size"]) == ("none", 5000)
    pid = os.fork()
    if pid == 0:
        is_read = file.read(10) == CONTENT[:10]
        os._exit(not is_read or file._source.handle.options != given)
    assert_ended_well(pid)
    file.close()


def goes_on_in_a_child(file: Any) -> None:
    pid = os.fork()
    if pid == 0:
        found = [file.read(10), file.read(70_000)]
        os._exit(found != [CONTENT[10:20], CONTENT[20:70_020]])
    assert_ended_well(pid)
    assert file.read(10) == CONTENT[10:20]


def is_held(file: Any) -> bool:
    """Whether another thread reads the file now."""
    is_free = file._lock.acquire(blocking=False)
    if is_free:
        file._lock.release()
    return not is_free


def in_process(fs: Any, path: str, expected: bytes) -> bytes:
    import slow as _  # noqa: F401 - registers the protocols in a spawned process

    assert fs.cat_file(path, 10, 20) == expected
    return bytes(fs.read_ranges(path, [5], [15])[0])


def processes(fs: Any) -> None:
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            asked = [(fs, PATH, CONTENT[10:20])] * 4
            assert pool.starmap(in_process, asked) == [CONTENT[5:15]] * 4


def thread_death(fs: Any) -> None:
    """Threads submit reads and die without taking the results."""
    slow.delay_s = 0.05

    def submit_and_die() -> None:
        reads = [fs.submit_ranges(PATH, [start], [start + 10]) for start in range(0, 500, 50)]
        reads.append(reads)  # type: ignore[arg-type]
        raise SystemExit

    threads = [threading.Thread(target=submit_and_die) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow.delay_s = 0.0
    gc.collect()
    at_rest(fs)
    check(fs)


def die() -> None:
    raise SystemExit


def loop_death(fs: Any) -> None:
    """The background threads die; the next read starts them again."""
    driver = fs.channel.driver
    driver = getattr(driver, "keeper", driver)
    for _ in range(3):
        check(fs)
        thread = driver.thread
        running = thread._thread
        if running is None:  # lite over async: the waiter drives, and there is no thread to kill
            break
        thread.call(die)
        running.join(CHILD_S)
        assert not running.is_alive()
    check(fs)
    at_rest(fs)


if __name__ == "__main__":
    the_fs = headrace.HeadraceFileSystem(target_protocol=PROTOCOL)
    check(the_fs)
    globals()[WORK](the_fs)
    at_rest(the_fs)
