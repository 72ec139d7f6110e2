"""Forks, is interrupted and ends with requests of the native engine in flight; run by ``test_native.py``.

Arguments: what to do, and the endpoint of the test's server.  The mode comes from the environment.  Says
``ready`` when it has read once, and ends with status 0 if all is right.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

import pyarrow.dataset
import pyarrow.fs
from forked import wait_for_child
from s3fs import S3FileSystem

import headrace
from headrace.errors import BackendError, SchedulerClosedError

WORK, ENDPOINT = sys.argv[1:3]
PATH = "bucket/data.bin"


def filesystem(**options: Any) -> Any:
    target = S3FileSystem(key="test-key", secret="test-secret", endpoint_url=ENDPOINT)
    return headrace.HeadraceFileSystem(fs=target, **options)


def read(fs: Any) -> None:
    starts = list(range(0, 200_000, 10_000))
    answers = fs.read_ranges(PATH, starts, [start + 10 for start in starts]).to_pylist()
    assert [len(answer) for answer in answers] == [10] * len(starts)


def fork() -> None:
    """The child reads on, through the other engine; asked for the native one it says why it cannot."""
    fs, explicit = filesystem(), filesystem(cloud_engine="obstore")
    file = fs.open(PATH, "rb")
    read(fs)
    file.read(10)
    is_over = threading.Event()

    def read_on() -> None:
        while not is_over.is_set():
            read(explicit)

    threads = [threading.Thread(target=read_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert fs.backend_name == "obstore"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            read(fs)
            assert len(file.read(10)) == 10
            assert fs.backend_name == "fsspec-async"
            assert "forked" in fs.stats().engine_reason
            try:
                read(explicit)
            except BackendError as error:
                assert "forked" in str(error)  # noqa: PT017
                status = 0
        finally:
            os._exit(status)
    status = wait_for_child(pid)
    is_over.set()
    for thread in threads:
        thread.join()
    assert status == 0, f"the forked child ended with {status}"
    read(fs)


def fork_before_use() -> None:
    """A child of a process that has not used the engine has it for itself: metadata are no use of it."""
    fs = filesystem(cloud_engine="obstore")
    assert fs.info(PATH)["size"] > 0
    assert fs.ls("bucket")
    assert (fs.backend_name, fs.stats().backend) == ("obstore", "obstore")
    assert "obstore" not in sys.modules
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            read(fs)
            status = 0 if fs.backend_name == "obstore" else 2
        finally:
            os._exit(status)
    status = wait_for_child(pid)
    assert status == 0, f"the forked child ended with {status}"


def interrupt(kind: str) -> None:
    """Wait for a request that is never answered, until SIGINT comes."""
    fs = filesystem()
    read(fs)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        if kind == "scan":
            pyarrow.dataset.dataset("bucket/never.parquet", filesystem=fs).to_table()
        elif kind == "read":
            fs.cat_file("bucket/never.bin", start=0, end=10)
        else:
            fs.submit_ranges("bucket/never.bin", [0], [10]).result()
    except KeyboardInterrupt:
        sys.stdout.write(json.dumps(time.monotonic()))
        return
    message = "nothing was raised"
    raise AssertionError(message)


def end_in_flight() -> None:
    """End with calls in flight, of which some return at any moment."""
    fs = filesystem()
    held = [fs.submit_ranges(PATH, [k * 1000], [k * 1000 + 10]) for k in range(50)]
    assert fs.cat_file(PATH, start=0, end=5)
    globals()["held"] = held

    def read_on() -> None:
        with contextlib.suppress(SchedulerClosedError):
            while True:
                read(fs)

    for _ in range(4):
        threading.Thread(target=read_on, daemon=True).start()
    read(fs)


if WORK == "fork":
    fork()
elif WORK == "fork_before_use":
    fork_before_use()
elif WORK == "end_in_flight":
    end_in_flight()
else:
    interrupt(WORK)
