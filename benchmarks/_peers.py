"""The contenders of `local_reads.py`: ways to read 4 KiB blocks of a local file.

Each function yields `Contender`s that take a list of offsets and return the blocks. Descriptors that
a peer shows are told that cold reads come at random; headrace gives its own advice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.fs
from _bench import KIB, Contender
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem
from obstore.store import LocalStore

from headrace import HeadraceFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

READ_BYTES = 4 * KIB
MODES = ("lite", "standard", "off")


class HandOver(AsyncFileSystem):
    """Local files behind fsspec's loop thread: its hand-over, and nothing else that costs."""

    protocol = "handover"
    cachable = False

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any
    ) -> bytes:
        assert start is not None
        assert end is not None
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.pread(fd, end - start, start)
        finally:
            os.close(fd)

    @staticmethod
    async def read_open(fd: int, start: int) -> bytes:
        """Read from a file that is open already."""
        return os.pread(fd, READ_BYTES, start)


def headrace_modes(modes: Sequence[str] = MODES) -> list[tuple[str, HeadraceFileSystem]]:
    """Return one filesystem for each mode."""
    return [(f"headrace {mode}", HeadraceFileSystem(fs=LocalFileSystem(), scheduler=mode)) for mode in modes]


# -- single small reads


def seek_and_read(file: Any) -> Callable[[list[int]], list[bytes]]:
    """Read one block after another of an open file."""
    seek, read = file.seek, file.read

    def run(starts: list[int]) -> list[bytes]:
        answers = []
        for start in starts:
            seek(start)
            answers.append(read(READ_BYTES))
        return answers

    return run


def advised(file: Any, state: str) -> Any:
    """Tell the kernel, through the peer's own descriptor, that cold reads come at random."""
    if state == "cold":
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file


def open_file_contenders(path: str, state: str) -> Iterator[Contender]:
    """Contenders that read a file which is open."""
    for name, fs in headrace_modes():
        file = fs.open(path, "rb")
        yield Contender(name, seek_and_read(file), file.close)
    local = advised(LocalFileSystem().open(path, "rb"), state)
    yield Contender("fsspec local", seek_and_read(local), local.close)
    arrow = advised(pa.OSFile(path), state)
    read_at = arrow.read_at
    yield Contender(
        "pyarrow read_at",
        lambda starts: [read_at(READ_BYTES, start) for start in starts],
        arrow.close,
    )
    yield obstore_singles(path)
    fs, raw = HandOver(), advised(open(path, "rb", buffering=0), state)  # noqa: PTH123, SIM115
    fd, loop, read = raw.fileno(), fs.loop, fs.read_open
    yield Contender("hand-over", lambda starts: [sync(loop, read, fd, start) for start in starts], raw.close)


def obstore_singles(path: str) -> Contender:
    """Return obstore's single reads."""
    store, name = LocalStore(os.path.dirname(path)), os.path.basename(path)  # noqa: PTH119, PTH120
    get = obstore.get_range
    return Contender(
        "obstore get_range",
        lambda starts: [get(store, name, start=start, length=READ_BYTES) for start in starts],
    )


def cat_file_contenders(path: str) -> Iterator[Contender]:
    """Contenders that are given a path for each read."""
    filesystems: list[tuple[str, Any]] = [
        *headrace_modes(),
        ("fsspec local", LocalFileSystem()),
        ("hand-over", HandOver()),
    ]
    for name, fs in filesystems:
        yield Contender(name, cat_each(fs.cat_file, path))
    arrow = pyarrow.fs.LocalFileSystem()
    yield Contender(
        "pyarrow open, read_at",
        lambda starts: [arrow.open_input_file(path).read_at(READ_BYTES, start) for start in starts],
    )
    yield obstore_singles(path)


def cat_each(cat: Callable[..., bytes], path: str) -> Callable[[list[int]], list[bytes]]:
    """Ask by path for one block after another."""
    return lambda starts: [cat(path, start=start, end=start + READ_BYTES) for start in starts]


def cat_one_contenders(path: str) -> Iterator[Contender]:
    """Contenders that are given a list of one range."""
    filesystems: list[tuple[str, Any]] = [
        *headrace_modes(),
        ("fsspec local", LocalFileSystem()),
        ("hand-over", HandOver()),
    ]
    for name, fs in filesystems:
        yield Contender(name, _cat_ranges_each(fs.cat_ranges, path))


def _cat_ranges_each(cat: Callable[..., list[bytes]], path: str) -> Callable[..., list[bytes]]:
    return lambda starts: [cat([path], [start], [start + READ_BYTES])[0] for start in starts]


# -- batches


def batch_contenders(path: str, state: str) -> Iterator[Contender]:
    """Contenders that read many blocks in one call."""
    for name, fs in headrace_modes(("lite", "standard")):
        yield Contender(f"{name} read_ranges", read_ranges(fs, path))
    for name, fs in [*headrace_modes(), ("fsspec local", LocalFileSystem()), ("hand-over", HandOver())]:
        yield Contender(f"{name} cat_ranges", cat_ranges(fs, path))
    store, name = LocalStore(os.path.dirname(path)), os.path.basename(path)  # noqa: PTH119, PTH120
    for label, options in (("coalesce=0", {"coalesce": 0}), ("default", {})):
        yield Contender(f"obstore get_ranges, {label}", _get_ranges(store, name, options))
    arrow = advised(pa.OSFile(path), state)
    read_at = arrow.read_at
    yield Contender(
        "pyarrow read_at loop",
        lambda starts: [read_at(READ_BYTES, start) for start in starts],
        arrow.close,
    )


def read_ranges(fs: HeadraceFileSystem, path: str) -> Callable[[list[int]], Any]:
    def run(starts: list[int]) -> Any:
        first = np.array(starts)
        return fs.read_ranges(path, first, first + READ_BYTES)

    return run


def cat_ranges(fs: Any, path: str) -> Callable[[list[int]], list[bytes]]:
    def run(starts: list[int]) -> list[bytes]:
        ends = [start + READ_BYTES for start in starts]
        found: list[bytes] = fs.cat_ranges([path] * len(starts), starts, ends)
        return found

    return run


def _get_ranges(store: Any, name: str, options: dict[str, Any]) -> Callable[[list[int]], Any]:
    return lambda starts: obstore.get_ranges(
        store, name, starts=starts, lengths=[READ_BYTES] * len(starts), **options
    )
