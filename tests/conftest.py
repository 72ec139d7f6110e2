"""Fixtures every test may use: modes, data sets, an S3 server, and a check for leaks.

Modes: a behaviour test asks for `mode` (lite, standard, off) or for `options`, which adds the two
serialized variants, and passes what it gets to the constructor.  A URL has no constructor, so
`environment_mode` sets the same choice through the environment.

S3: moto's server in threads of this process on a free loopback port.  It is moto's app for S3 alone:
`ThreadedMotoServer` looks among all services of AWS for the one each request is for, twice, which
takes longer than S3's answer does.  Nothing of the developer's
own AWS configuration is read: credentials travel in the storage options, and the files and
services where botocore would look are switched off for the session.

Leaks: `no_leaks` compares threads and descriptors before and after a block.  Threads and cached
descriptors that live as long as the process are no leak, so warm up first, then check.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import botocore.session
import data
import fsspec
import hypothesis_profiles
import pytest
import s3fs
import targets as targets_
from modes import BUCKET, ENGINES, IS_CLOUD_AT_FULL_SIZE, MODES, OPTIONS, SCHEDULED
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

hypothesis_profiles.load_profile()

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SETTLE_S = 10.0
WAIT_S = 30.0


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """One of the modes, for the constructor's ``scheduler=``."""
    return str(request.param)


@pytest.fixture(params=SCHEDULED)
def scheduled_mode(request: pytest.FixtureRequest) -> str:
    """One of the modes in which headrace schedules."""
    return str(request.param)


@pytest.fixture(params=list(OPTIONS))
def options(request: pytest.FixtureRequest) -> dict[str, object]:
    """Constructor options of one mode, the serialized variants included."""
    return dict(OPTIONS[request.param])


@pytest.fixture
def environment_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put `mode` in force through the environment, for reads that start from a URL."""
    import headrace

    with monkeypatch.context() as patch:
        patch.setenv("HEADRACE_SCHEDULER", mode)
        headrace.reload()
        yield mode
    headrace.reload()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run once what would run for each engine and is read by none: everything under ``off``."""
    config.hook.pytest_deselected(items=[item for item in items if _is_repeated(item)])
    items[:] = [item for item in items if not _is_repeated(item)]


def pytest_collection_finish() -> None:
    """Keep thousands of tests out of the garbage collector's way: a second for each pass."""
    _out_of_the_collectors_way()


def _out_of_the_collectors_way() -> None:
    gc.collect()
    gc.freeze()


def _is_repeated(item: pytest.Item) -> bool:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    is_off = "off" in (given.get("mode"), given.get("options"))
    return is_off and "fsspec" in (given.get("cloud_engine"), given.get("writers_cloud_engine"))


@pytest.fixture(params=ENGINES)
def cloud_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have one of the engines read object stores, by the environment."""
    yield from _engine_in_force(request.param, monkeypatch)


@pytest.fixture(params=ENGINES if IS_CLOUD_AT_FULL_SIZE else ENGINES[:1])
def writers_cloud_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Do the same for what writes and reads only what it has written: with either in the full run."""
    yield from _engine_in_force(request.param, monkeypatch)


def _engine_in_force(engine: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import headrace

    with monkeypatch.context() as patch:
        patch.setenv("HEADRACE_CLOUD_ENGINE", engine)
        headrace.reload()
        yield engine
    headrace.reload()


@pytest.fixture(scope="session", autouse=True)
def _isolated_environment() -> Iterator[None]:
    """Hide the developer's settings, ours and those of AWS and fsspec, from the tests.

    The tests' own ``HEADRACE_TEST_*`` go too, once read: headrace warns of names it does not know.
    ``HEADRACE_TEST_LOCAL_BACKEND`` has all of them run with that backend of local files.
    """
    local_backend = os.environ.get("HEADRACE_TEST_LOCAL_BACKEND")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("HEADRACE_", "AWS_", "FSSPEC_")):
                patch.delenv(name)
        if local_backend is not None:
            patch.setenv("HEADRACE_LOCAL_BACKEND", local_backend)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads spin, in each of hundreds of children
        yield


@pytest.fixture(scope="session", autouse=True)
def _models_parsed_once() -> Iterator[None]:
    """Have all sessions of botocore share what describes AWS: a tenth of a second of JSON for each client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def s3_server(_isolated_environment: None) -> Iterator[dict[str, object]]:
    """Storage options that reach a private S3 server with the bucket `BUCKET`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = create_backend_app("s3")
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    storage: dict[str, object] = {
        "key": "test-key",
        "secret": "test-secret",
        "endpoint_url": f"http://127.0.0.1:{server.port}",
    }
    fsspec.filesystem("s3", **storage).mkdir(BUCKET)
    _out_of_the_collectors_way()  # what botocore and moto know of S3
    yield storage
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def lineitem(pytestconfig: pytest.Config) -> data.Lineitem:
    """TPC-H lineitem on disk at the scale of ``HEADRACE_TEST_SCALE``."""
    return data.make_lineitem(_data_cache(pytestconfig), data.SCALE)


@pytest.fixture(scope="session")
def small_lineitem(pytestconfig: pytest.Config) -> data.Lineitem:
    """TPC-H lineitem on disk, about 12,000 rows."""
    return data.make_lineitem(_data_cache(pytestconfig), 0.002, part_rows=2_000)


@pytest.fixture(scope="session")
def s3_lineitem(
    s3_server: dict[str, object], small_lineitem: data.Lineitem, pytestconfig: pytest.Config
) -> data.Lineitem:
    """The small table, copied to the bucket; one of 600,000 rows in the full run of the cloud's tests."""
    is_small = not IS_CLOUD_AT_FULL_SIZE
    source = small_lineitem if is_small else data.make_lineitem(_data_cache(pytestconfig), 0.1)
    root = f"{BUCKET}/lineitem"
    fsspec.filesystem("s3", **s3_server).put(source.root, root, recursive=True)
    return data.Lineitem(root)


@pytest.fixture(scope="session")
def targets(
    tmp_path_factory: pytest.TempPathFactory, s3_server: dict[str, object]
) -> dict[str, targets_.Target]:
    """The same content behind each kind of wrapped filesystem."""
    return targets_.make_targets(tmp_path_factory.mktemp("targets"), s3_server)


@pytest.fixture(params=targets_.PROTOCOLS)
def target(request: pytest.FixtureRequest, targets: dict[str, targets_.Target]) -> targets_.Target:
    """One of them."""
    return targets[request.param]


@pytest.fixture
def disk(targets: dict[str, targets_.Target]) -> targets_.Target:
    """The one on the local disk."""
    return targets["file"]


def _data_cache(config: pytest.Config) -> Path:
    return config.cache.mkdir("headrace-data")


@pytest.fixture(autouse=True)
def _filesystems_forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have no client of S3 outlive its test's server: fsspec keeps each, and one is 10,000 objects."""
    is_served = "server" in request.fixturenames
    if is_served:
        request.getfixturevalue("server")  # made before this one, it ends after it
    yield
    if is_served:
        import headrace

        for kind in (headrace.HeadraceFileSystem, s3fs.S3FileSystem):
            kind.clear_instance_cache()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits for a condition, and fails if it never comes."""
    return _wait_until


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition waited for never came"
        time.sleep(0.001)


@pytest.fixture
def no_leaks() -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that fails if its block leaves a thread or a descriptor."""
    return _no_leaks


@contextlib.contextmanager
def _no_leaks() -> Iterator[None]:
    gc.collect()
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    gc.collect()
    _join_all(set(threading.enumerate()) - threads)
    left = set(threading.enumerate()) - threads
    assert not left, f"threads left behind: {left}"
    opened = _descriptors()
    assert len(opened) <= len(descriptors), f"descriptors left open: {opened - descriptors}"


def _join_all(threads: set[threading.Thread]) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    for thread in threads:
        thread.join(timeout=max(0.0, deadline_s - time.monotonic()))


def _descriptors() -> set[tuple[str, str]]:
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112
    found = set()
    for name in os.listdir(directory):  # noqa: PTH208
        with contextlib.suppress(OSError):  # the descriptor of this very listing is gone by now
            found.add((name, os.readlink(f"{directory}/{name}")))  # noqa: PTH115
    return found
