"""What the defaults of object stores were chosen by: gaps to read over, parts to split into.

*gaps*: ranges of 16 KiB, one after another with gaps around one size between them, read with various
``max_gap_bytes``. *parts*: one long sequential read of an open file, with various ``max_op_bytes``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from _bench import GIB, KIB, MIB, Case, Contender
from _cloud_peers import ENGINES, s3_options

from headrace import HeadraceFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from _cloud_peers import Clients

RANGE_BYTES = 16 * KIB
GAPS = (4 * KIB, 64 * KIB, 256 * KIB, MIB)
MAX_GAPS = (0, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
PARTS = (MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB)
LEAST_RANGES, MOST_RANGES = 20, 200


@dataclass(frozen=True, slots=True)
class Beside:
    """What goes on beside: its name, and what starts and ends it."""

    name: str
    around: Callable[[], AbstractContextManager[Any]]


def default_cases(clients: Clients, path: Path, beside: list[Beside]) -> Iterator[Case]:
    """Return the cases of gaps and of parts."""
    size_bytes = path.stat().st_size
    for one in beside:
        for gap_bytes in GAPS:
            yield _gap_case(clients, path, gap_bytes, size_bytes, one)
        for total_bytes in (size_bytes // 16, size_bytes // 4):
            yield _part_case(clients, path, total_bytes, one)


def _made(clients: Clients, **options: Any) -> HeadraceFileSystem:
    return HeadraceFileSystem(target_protocol="s3", target_options=s3_options(clients.endpoint), **options)


def _size(nbytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if nbytes >= unit:
            return f"{nbytes // unit} {name}"
    return str(nbytes)


# -- gaps


def _gap_case(clients: Clients, path: Path, gap_bytes: int, size_bytes: int, beside: Beside) -> Case:
    n = min(MOST_RANGES, max(LEAST_RANGES, size_bytes // 8 // (gap_bytes + RANGE_BYTES)))
    ways = [
        Contender(f"headrace {engine}, gap {_size(most)}", _read_ranges(clients, path, engine, most))
        for engine in ENGINES
        for most in MAX_GAPS
    ]
    make_input = partial(_scattered, n, gap_bytes, size_bytes)
    name = f"{n} ranges, {_size(gap_bytes)} apart, {beside.name}"
    truth = partial(_blocks, path)
    return Case("defaults", name, "hot", make_input, ways, n, "requests", [path], truth, beside.around)


def _scattered(n: int, gap_bytes: int, size_bytes: int, rng: np.random.Generator) -> list[int]:
    """Return where ranges begin, the gaps between them half as long to half as long again."""
    steps = rng.integers(gap_bytes // 2, gap_bytes * 3 // 2, n) + RANGE_BYTES
    begin = rng.integers(0, size_bytes - int(steps.sum()) - RANGE_BYTES)
    starts: list[int] = (begin + np.cumsum(steps) - steps).tolist()
    return starts


def _blocks(path: Path, starts: list[int]) -> list[bytes]:
    with path.open("rb", buffering=0) as file:
        return [os.pread(file.fileno(), RANGE_BYTES, start) for start in starts]


def _read_ranges(clients: Clients, path: Path, engine: str, most: int) -> Callable[[list[int]], Any]:
    fs = _made(clients, cloud_engine=engine, max_gap_bytes=most)
    name = f"{clients.bucket}/{path.name}"
    return lambda starts: fs.read_ranges(name, starts, [start + RANGE_BYTES for start in starts])


# -- parts


def _part_case(clients: Clients, path: Path, total_bytes: int, beside: Beside) -> Case:
    ways = [
        Contender(
            f"headrace {engine}, parts of {_size(part)}", _read(clients, path, engine, part, total_bytes)
        )
        for engine in ENGINES
        for part in PARTS
    ]

    def truth(start: int) -> bytes:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), total_bytes, start)

    return Case(
        "defaults",
        f"{_size(total_bytes)} from end to end, {beside.name}",
        "hot",
        lambda rng: int(rng.integers(0, path.stat().st_size - total_bytes)),
        ways,
        total_bytes,
        "bytes",
        [path],
        truth,
        beside.around,
    )


def _read(clients: Clients, path: Path, engine: str, part: int, total_bytes: int) -> Callable[[int], bytes]:
    fs = _made(clients, cloud_engine=engine, max_op_bytes=part)

    def run(start: int) -> bytes:
        with fs.open(f"{clients.bucket}/{path.name}", cache_type="none") as file:
            file.seek(start)
            data: bytes = file.read(total_bytes)
            return data

    return run
