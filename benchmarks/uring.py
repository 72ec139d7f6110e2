"""Random reads of local files through io_uring: against fio, Lance, fsspec, obstore and headrace's own modes.

Run it as root for caches that are really cold; fio comes from Debian, Lance from PyPI (pylance)::

    python benchmarks/uring.py --out docs/benchmarks

Sections:

* *fio*: 100,000 random ranges of 4 KiB in one `read_ranges`, hot and cold; fio's io_uring engine, depth 128.
* *modes*: the same, and blocks by one, 10, 100 and 1,000, through headrace's schedulers and backends.
* *lance*: 100,000 random rows of 1 KiB of 2 million into an Arrow column, hot and cold; Lance with its
  own io_uring reader and lite scheduler, in a process of its own.
* *cat_ranges*: 20,000 cold ranges as a list of bytes; fsspec local, obstore.
* *busy*: hot batches beside no, one and two busy Python threads.
* *threads*: eight threads, each with its own batches, and one thread with as many.
* *calls*: 10 to 1,000,000 ranges a call; short ones are made again and again, 20,000 ranges in all.
* *auto*: what `HEADRACE_LOCAL_BACKEND=auto` chooses against `pread`: single reads, calls of 10 to 100,000
  blocks, 1 MiB parts, hot and cold, in lite and in standard.

Arenas are warm: the round that is not counted has made them. A peer that is not installed is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
from _bench import (
    GIB,
    KIB,
    MIB,
    Case,
    Contender,
    Result,
    Took,
    as_json,
    draw_rates,
    parse_sections,
    parser,
    prepare,
    random_file,
    run_all,
    save,
    show_results,
)
from _peers import READ_BYTES, cat_each, cat_ranges, read_ranges, seek_and_read
from _promises import Promise, Rates, cases_of, promises_as_json, ratio, show_promises
from fsspec.implementations.local import LocalFileSystem
from local_reads import blocks_of, busy_thread, random_starts
from obstore.store import LocalStore

from headrace import HeadraceFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEPTH = 128
THREADS = 8
ROW_BYTES = KIB
LANCE_CHILD = Path(__file__).with_name("_lance_child.py")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    file_bytes: int
    batch: int
    rows: int
    taken: int
    listed: int
    busy: int
    most: int

    @property
    def few(self) -> int:
        """Cold and one by one: each waits for the disk."""
        return self.busy // 10


FULL = Sizes(4 * GIB, 100_000, 2_000_000, 100_000, 20_000, 20_000, 1_000_000)
QUICK = Sizes(256 * MIB, 4_000, 20_000, 2_000, 2_000, 2_000, 10_000)


def filesystem(mode: str, backend: str) -> HeadraceFileSystem:
    """Return local files under one scheduler and one backend."""
    return HeadraceFileSystem(fs=LocalFileSystem(), scheduler=mode, local_backend=backend)


def headrace_reads(path: Path, *ways: tuple[str, str]) -> Iterator[Contender]:
    """Read the blocks in one `read_ranges`."""
    for mode, backend in ways:
        yield Contender(f"headrace {mode}, {backend}", read_ranges(filesystem(mode, backend), str(path)))


# -- fio


def fio_contender(path: Path, *, direct: bool) -> Contender:
    """Return fio's io_uring engine on the same file, with blocks of its own choice."""
    command = [
        "fio", "--name=random", f"--filename={path}", "--readonly", "--rw=randread", f"--bs={READ_BYTES}",
        "--ioengine=io_uring", f"--iodepth={DEPTH}", "--randrepeat=0", "--runtime=2", "--time_based",
        f"--direct={int(direct)}", "--invalidate=0", "--output-format=json",
    ]  # fmt: skip

    def run(starts: list[int]) -> Took:
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return Took(len(starts) / float(found["jobs"][0]["read"]["iops"]))

    return Contender(f"fio io_uring, depth {DEPTH}{', direct' if direct else ''}", run)


def fio_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Random 4 KiB reads in one call, and fio's rate."""
    for state in ("hot", "cold"):
        contenders = list(headrace_reads(path, ("lite", "uring"), ("lite", "pread")))
        if shutil.which("fio"):
            contenders.insert(0, fio_contender(path, direct=state == "cold"))
        yield block_case("fio", f"{sizes.batch:,} x 4 KiB", state, path, sizes.batch, contenders)


def block_case(section: str, name: str, state: str, path: Path, n: int, contenders: list[Contender]) -> Case:
    """Return a case of `n` random blocks."""
    starts = random_starts(n, path.stat().st_size)
    return Case(section, name, state, starts, contenders, n, "reads", [path], blocks_of(path))


# -- modes, lists


def mode_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Compare the schedulers and the backends, by how many blocks are asked for at once."""
    ways = (("lite", "uring"), ("lite", "pread"), ("standard", "uring"), ("standard", "pread"))
    for state in ("hot", "cold"):
        for n in (1, 10, 100, 1000):
            amount = sizes.few if n <= 10 and state == "cold" else sizes.busy
            reads = cat_file_reads if n == 1 else partial(call_reads, n)
            contenders = [
                Contender(f"headrace {mode}, {backend}", reads(filesystem(mode, backend), str(path)))
                for mode, backend in ways
            ]
            name = f"calls of {n:,}, {amount:,} x 4 KiB"
            starts = random_starts(amount, path.stat().st_size)
            yield Case("modes", name, state, starts, contenders, amount, "reads", [path])
        contenders = list(headrace_reads(path, *ways))
        yield block_case("modes", f"{sizes.batch:,} x 4 KiB", state, path, sizes.batch, contenders)


def list_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Cold ranges as a list of bytes."""
    store = LocalStore(str(path.parent))

    def get_ranges(starts: list[int]) -> Any:
        lengths = [READ_BYTES] * len(starts)
        return obstore.get_ranges(store, path.name, starts=starts, lengths=lengths, coalesce=0)

    contenders = [
        Contender(f"headrace lite, {backend}", cat_ranges(filesystem("lite", backend), str(path)))
        for backend in ("uring", "pread")
    ]
    contenders.append(Contender("fsspec local", cat_ranges(LocalFileSystem(), str(path))))
    contenders.append(Contender("obstore, coalesce=0", get_ranges))
    yield block_case("cat_ranges", f"{sizes.listed:,} x 4 KiB", "cold", path, sizes.listed, contenders)


# -- Lance


class Lance:
    """Lance in a process of its own: its settings are read when it is imported."""

    def __init__(self, root: Path, rows: int) -> None:
        environment = {**os.environ, "LANCE_USE_LITE_SCHEDULER": "1"}
        self._child = subprocess.Popen(
            [sys.executable, str(LANCE_CHILD), str(root), str(rows), str(ROW_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.files = [Path(name) for name in json.loads(self._line())]

    def take(self, rows: np.ndarray[Any, Any]) -> Took:
        """Take rows; returns what Lance needed, without the way to its process."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(rows.tolist()) + "\n")
        self._child.stdin.flush()
        return Took(float(self._line()))

    def close(self) -> None:
        """End the process."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            msg = "the process with Lance ended"
            raise RuntimeError(msg)
        return line


def lance_cases(data_dir: Path, sizes: Sizes) -> Iterator[Case]:
    """Random rows into an Arrow column."""
    path = random_file(data_dir / f"rows-{sizes.rows}.bin", sizes.rows * ROW_BYTES)
    for state in ("hot", "cold"):
        contenders = [
            Contender(f"headrace lite, {backend}", take_rows(filesystem("lite", backend), str(path)))
            for backend in ("uring", "pread")
        ]
        files = [path]
        if find_spec("lance") is not None:
            lance = Lance(data_dir / f"rows-{sizes.rows}.lance", sizes.rows)
            contenders.append(Contender("lance take, file+uring, lite", lance.take, lance.close))
            files += lance.files
        yield Case(
            "lance",
            f"{sizes.taken:,} rows of 1 KiB of {sizes.rows:,}",
            state,
            lambda rng: np.sort(rng.choice(sizes.rows, sizes.taken, replace=False)),
            contenders,
            sizes.taken,
            "rows",
            files,
        )


def take_rows(fs: HeadraceFileSystem, path: str) -> Callable[[np.ndarray[Any, Any]], Any]:
    """Read rows of one length and make an Arrow column of them, as Lance does."""

    def run(rows: np.ndarray[Any, Any]) -> Any:
        starts = rows * ROW_BYTES
        return fs.read_ranges(path, starts, starts + ROW_BYTES).to_arrow()

    return run


# -- threads


def busy_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Hot batches beside busy Python threads."""
    for count in (0, 1, 2):
        contenders = [
            Contender(one.name, partial(beside, count, one.run))
            for one in headrace_reads(path, ("lite", "uring"), ("lite", "pread"))
        ]
        label = f"{sizes.busy:,} x 4 KiB, {count} busy threads"
        case = block_case("busy", label, "hot", path, sizes.busy, contenders)
        yield replace(case, starts_threads=count > 0)


def beside(count: int, run: Callable[[list[int]], Any], starts: list[int]) -> Any:
    """Run beside so many busy threads."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(busy_thread())
        return run(starts)


def thread_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Eight threads with batches of their own, and one thread with all of them."""
    contenders: list[Contender] = []
    for backend in ("uring", "pread"):
        read = read_ranges(filesystem("lite", backend), str(path))
        contenders.append(Contender(f"headrace lite, {backend}, 1 thread", partial(in_turn, read)))
        contenders.append(Contender(f"headrace lite, {backend}, {THREADS} threads", partial(at_once, read)))
    for state in ("hot", "cold"):
        starts = random_starts(sizes.batch, path.stat().st_size)
        name = f"{THREADS} batches, {sizes.batch:,} x 4 KiB in all"
        yield Case("threads", name, state, starts, contenders, sizes.batch, "reads", [path])


def in_turn(read: Callable[[list[int]], Any], starts: list[int]) -> None:
    """Read the batches one after another."""
    for k in range(THREADS):
        read(starts[k::THREADS])


def at_once(read: Callable[[list[int]], Any], starts: list[int]) -> None:
    """Read each batch on a thread of its own."""
    threads = [threading.Thread(target=read, args=(starts[k::THREADS],)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def call_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Ask for more and more ranges in a call; in the longest, blocks come several times."""
    blocks = path.stat().st_size // READ_BYTES
    fs = filesystem("lite", "uring")

    def run(calls: list[np.ndarray[Any, Any]]) -> Any:
        for starts in calls:
            fs.read_ranges(str(path), starts, starts + 512)

    n = 10
    while n <= sizes.most:
        calls = max(1, sizes.busy // n)
        yield Case(
            "calls",
            f"{n:,} x 512 B",
            "hot",
            lambda rng, n=n, calls=calls: list(rng.integers(0, blocks, (calls, n)) * READ_BYTES),
            [Contender("headrace lite, uring", run)],
            n * calls,
            "ranges",
            [path],
        )
        n *= 10


# -- auto


def auto_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Compare what `auto` chooses with `pread`."""
    for mode in ("lite", "standard"):
        for state in ("hot", "cold"):
            singles = sizes.busy if state == "hot" else sizes.few
            yield auto_case(f"{mode}, open file", state, path, singles, open_file_reads)
            yield auto_case(f"{mode}, cat_file", state, path, singles, cat_file_reads)
            for n in (10, 100, 1000, sizes.batch):
                amount = max(sizes.few if n == 10 and state == "cold" else sizes.busy, n)
                yield auto_case(f"{mode}, calls of {n:,}", state, path, amount, partial(call_reads, n))
            yield auto_case(f"{mode}, 1 MiB", state, path, path.stat().st_size // (16 * MIB), part_reads, MIB)


def auto_case(
    name: str,
    state: str,
    path: Path,
    amount: int,
    reads: Callable[[HeadraceFileSystem, str], Callable[[list[int]], Any]],
    nbytes: int = READ_BYTES,
) -> Case:
    """Return a case of so many reads through `auto` and through `pread`."""
    mode = name.partition(",")[0]
    contenders = [
        Contender(f"headrace {mode}, {backend}", reads(filesystem(mode, backend), str(path)))
        for backend in ("auto", "pread")
    ]
    places = path.stat().st_size // nbytes

    def starts(rng: np.random.Generator) -> list[int]:
        found: list[int] = (rng.choice(places, min(amount, places), replace=False) * nbytes).tolist()
        return found

    return Case(
        "auto",
        f"{name}, {amount:,} x {nbytes // KIB} KiB",
        state,
        starts,
        contenders,
        amount,
        "reads",
        [path],
    )


def open_file_reads(fs: HeadraceFileSystem, path: str) -> Callable[[list[int]], Any]:
    """Read one block after another of an open file."""
    return seek_and_read(fs.open(path, "rb"))


def cat_file_reads(fs: HeadraceFileSystem, path: str) -> Callable[[list[int]], Any]:
    """Ask by path for one block after another."""
    return cat_each(fs.cat_file, path)


def call_reads(n: int, fs: HeadraceFileSystem, path: str) -> Callable[[list[int]], Any]:
    """Read so many blocks in a call."""
    read = read_ranges(fs, path)

    def run(starts: list[int]) -> None:
        for lo in range(0, len(starts), n):
            read(starts[lo : lo + n])

    return run


def part_reads(fs: HeadraceFileSystem, path: str) -> Callable[[list[int]], Any]:
    """Read long parts in one call."""
    return lambda starts: fs.cat_ranges([path] * len(starts), starts, [start + MIB for start in starts])


# -- promises

RING, POOL = "headrace lite, uring", "headrace standard, pread"
_OURS = {RING: 1.0, "headrace lite, pread": None}
"""Of what share of the GIL, and of one thread's rate, something is promised."""
FLAT = 1.5
"""From so many ranges a call on, the dearest range costs so many times the cheapest one at the most."""
FLAT_FROM = 1000


def promises(results: Sequence[Result]) -> Iterator[Promise]:
    """Return every ratio that the project makes a promise about, kept or missed."""
    for case in cases_of(results, "fio"):
        yield from case.against(RING, "fio io_uring", 0.9 if case.state == "hot" else 0.95)
    for case in cases_of(results, "modes"):
        yield from case.against_one(RING, POOL, 4)
    for case in cases_of(results, "lance"):
        yield from case.against(RING, "lance take", 3 if case.state == "hot" else 1.5)
    for case in cases_of(results, "cat_ranges"):
        yield from case.against(RING, "fsspec local", 8)
        yield from case.against(RING, "obstore", 3)
    yield from _beside_busy_threads(*cases_of(results, "busy"))
    for case in cases_of(results, "threads"):
        for name, least in _OURS.items():
            yield from case.against_one(f"{name}, 8 threads", f"{name}, 1 thread", least)
    yield from _cost_of_a_range([row for row in results if row.section == "calls"])
    for case in cases_of(results, "auto"):
        yield from case.against_one(*case.contenders, 0.95)


def _beside_busy_threads(*cases: Rates) -> Iterator[Promise]:
    """Compare with the idle machine: a share of the GIL is left."""
    for busy, case in enumerate(cases):
        for name, share in _OURS.items() if busy else ():
            least = share and share / (busy + 1)
            yield from ratio(f"{name} / the same idle", str(case), least, case.one(name), cases[0].one(name))


def _cost_of_a_range(rows: Sequence[Result]) -> Iterator[Promise]:
    """Compare the dearest range of long calls with the cheapest; a case says first how many are in a call."""
    rates = [row.rate for row in rows if int(row.case.split()[0].replace(",", "")) >= FLAT_FROM]
    what = f"the dearest range's rate / the cheapest one's, {FLAT_FROM:,} and more in a call"
    yield from ratio(what, "calls", 1 / FLAT, min(rates, default=None), max(rates, default=None))


SECTIONS: dict[str, Callable[[Path, Path, Sizes], Iterator[Case]]] = {
    "fio": lambda path, _folder, sizes: fio_cases(path, sizes),
    "modes": lambda path, _folder, sizes: mode_cases(path, sizes),
    "lance": lambda _path, folder, sizes: lance_cases(folder, sizes),
    "cat_ranges": lambda path, _folder, sizes: list_cases(path, sizes),
    "busy": lambda path, _folder, sizes: busy_cases(path, sizes),
    "threads": lambda path, _folder, sizes: thread_cases(path, sizes),
    "calls": lambda path, _folder, sizes: call_cases(path, sizes),
    "auto": lambda path, _folder, sizes: auto_cases(path, sizes),
}


def main() -> None:
    """Run what is asked for and report."""
    given = parse_sections(parser(__doc__ or ""), list(SECTIONS))
    prepare()
    sizes = QUICK if given.quick else FULL
    path = random_file(given.data_dir / f"random-{sizes.file_bytes}.bin", sizes.file_bytes)
    cases = [case for name in given.sections for case in SECTIONS[name](path, given.data_dir, sizes)]
    results = run_all(cases, given.rounds)
    title = f"local reads through io_uring, medians of {given.rounds} alternating runs"
    show_results(results, title)
    found = list(promises(results))
    show_promises(found)
    facts = {"rounds": given.rounds, "promises": promises_as_json(found), "results": as_json(results)}
    save(given.out, "uring", facts, draw_rates(results, title))


if __name__ == "__main__":
    main()
