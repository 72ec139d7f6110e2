"""Forks, ends or loses its loop thread with requests to a store in flight; run by ``test_cloud.py``.

Argument: what to do.  The mode comes from the environment.  Ends with status 0 if all is right.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import headrace
from headrace.testing import Fault, ObjectServer

CONTENT = bytes(range(256)) * 2000
STARTS = list(range(0, 300_000, 10_000))
ENDS = [start + 100 for start in STARTS]
WAIT_S = 60.0


def check(fs: Any, file: Any) -> None:
    batch = fs.read_ranges("bucket/key", STARTS, ENDS)
    assert batch.to_pylist() == [CONTENT[start : start + 100] for start in STARTS]
    file.seek(1000)
    assert file.read(70_000) == CONTENT[1000:71_000]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def in_flight(fs: Any, server: ObjectServer) -> tuple[Any, Future[None]]:
    """Submit a read whose requests the server holds back; returns it and what lets them go."""
    gate: Future[None] = Future()
    server.script = lambda _request: Fault(until=gate)
    read = fs.submit_ranges("bucket/key", STARTS, ENDS)
    wait_until(lambda: bool(server.in_progress))
    server.script = None
    return read, gate


def forked(work: Callable[[], None]) -> int:
    """Do some work in a forked child, which ends with status 0 if nothing was wrong; returns its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(status)
    return pid


def wait_for(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0


def fork(fs: Any, file: Any, server: ObjectServer) -> None:
    """The child reads by the parent's objects, while the parent's requests are in flight."""
    read, gate = in_flight(fs, server)

    def work() -> None:
        check(fs, file)
        assert fs.stats().in_flight_ops == 0

    wait_for(forked(work))
    gate.set_result(None)
    assert bytes(read.result(WAIT_S)[0]) == CONTENT[:100]


def fork_ahead(fs: Any, _file: Any, server: ObjectServer) -> None:
    """What the parent has read ahead, in part, is the parent's: the child reads for itself."""
    file = fs.open("bucket/key", cache_type="none")
    size = 64 << 10
    assert file.read(size) == CONTENT[:size]
    gate: Future[None] = Future()
    ahead = f"bytes={2 * size}-"
    server.script = lambda request: Fault(until=gate) if str(request.range).startswith(ahead) else None
    assert file.read(size) == CONTENT[size : 2 * size]
    wait_until(lambda: bool(server.in_progress))

    def work() -> None:
        nonlocal file
        assert file.read() == CONTENT[2 * size :]
        file = None

    pid = forked(work)
    server.script = None
    wait_for(pid)
    gate.set_result(None)
    while piece := file.read(size):
        assert piece == CONTENT[file.tell() - len(piece) : file.tell()]
    file.close()
    assert fs.stats().reserved_bytes == 0


def fork_quiet(fs: Any, file: Any, _server: ObjectServer) -> None:
    """What the parent has opened is let go of in the child, and no client complains of that."""

    def work() -> None:
        check(fs, file)
        gc.collect()

    wait_for(forked(work))


def die() -> None:
    raise SystemExit


def loop_death(fs: Any, file: Any, server: ObjectServer) -> None:
    """The thread that runs the loop dies; what was in flight goes on with the next one."""
    for _ in range(3):
        read, gate = in_flight(fs, server)
        thread = fs.channel.driver.thread
        running = thread._thread
        if running is not None:  # lite: the keeper drives, and dies with its loop's run
            thread.call(die)
            running.join(WAIT_S)
            assert not running.is_alive()
        gate.set_result(None)
        assert bytes(read.result(WAIT_S)[0]) == CONTENT[:100]
        check(fs, file)


def end(_fs: Any, _file: Any, _server: ObjectServer) -> None:
    """What nobody reads any more, of a store that does not answer, is closed with the process."""
    silent = ObjectServer()
    kept.append(silent)
    silent.__enter__()
    silent.put("bucket", "key", CONTENT)
    gc.disable()
    for _ in range(3):
        fs = filesystem(silent)
        check(fs, fs.open("bucket/key"))
        in_flight(fs, silent)
        knot: list[Any] = [fs]
        knot.append(knot)  # which the collection at the end unties


kept: list[ObjectServer] = []


def filesystem(server: ObjectServer) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(
        target_protocol="s3",
        target_options=server.storage_options(),
        max_gap_bytes=0,
        cloud_engine="fsspec",  # the other one: native.py
        skip_instance_cache=True,
    )


if __name__ == "__main__":
    with ObjectServer() as the_server:
        the_server.put("bucket", "key", CONTENT)
        the_fs = filesystem(the_server)
        the_file = the_fs.open("bucket/key")
        check(the_fs, the_file)
        globals()[sys.argv[1]](the_fs, the_file, the_server)
        check(the_fs, the_file)
        # Of all stores: what was dropped is cancelled, and ends when its loop next runs.
        wait_until(lambda: the_fs.stats().in_flight_ops == 0)
