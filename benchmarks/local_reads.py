"""Local reads, side by side: headrace's modes, fsspec, obstore and pyarrow.

Run it as root for caches that are really cold::

    python benchmarks/local_reads.py --out docs/benchmarks

Sections, each hot and cold:

* *single*: one 4 KiB read after another, at random places. Of an open file, by ``cat_file``, and by
  ``cat_ranges`` of one range.
* *batch*: 100,000 random ranges of 4 KiB in one call.
* *cat_ranges*: sorted, unsorted, adjacent, many files, large: headrace and fsspec's own.
* *stream*: a part of one open file from its beginning to its end, so many bytes at a time.
* *busy*: small hot reads while another Python thread computes.
* *scan*: ``pyarrow.dataset`` over TPC-H lineitem, all columns and two, idle and beside a busy thread.

"hand-over" is what fsspec does for its async filesystems, with the cheapest read there is behind it:
a coroutine that calls ``os.pread``, run on fsspec's own loop thread by ``fsspec.asyn.sync``.

Each peer has its best configuration: descriptors that are used for random cold reads have
``POSIX_FADV_RANDOM`` wherever the peer shows them.

At the end stand the ratios that the project makes promises about, missed ones in bold. That reads are no
slower than those of the filesystem that is wrapped is one of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
from _bench import (
    GIB,
    KIB,
    MIB,
    Case,
    Contender,
    Result,
    as_json,
    draw_rates,
    lineitem,
    parse_sections,
    parser,
    prepare,
    random_file,
    run_all,
    save,
    show_results,
    small_files,
)
from _peers import (
    READ_BYTES,
    batch_contenders,
    cat_each,
    cat_file_contenders,
    cat_one_contenders,
    cat_ranges,
    headrace_modes,
    open_file_contenders,
    read_ranges,
)
from _promises import Promise, Rates, cases_of, promises_as_json, ratio, show_promises
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

STATES = ("hot", "cold")
TWO_COLUMNS = ["l_orderkey", "l_extendedprice"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    file_bytes: int
    hot_singles: int
    cold_singles: int
    batch: int
    cat_ranges: int
    small_files: int
    large: int
    stream_bytes: int
    scale: float


FULL = Sizes(4 * GIB, 5000, 1000, 100_000, 20_000, 1000, 100, 256 * MIB, 1.0)
QUICK = Sizes(256 * MIB, 500, 100, 4_000, 2_000, 100, 10, 64 * MIB, 0.05)

Spans = tuple[list[str], list[int], list[int]]


# -- single small reads


def random_starts(n: int, file_bytes: int) -> Callable[[np.random.Generator], list[int]]:
    """Blocks in random order, none twice."""
    blocks = file_bytes // READ_BYTES
    return lambda rng: (rng.choice(blocks, min(n, blocks), replace=False) * READ_BYTES).tolist()


def blocks_of(path: Path) -> Callable[[list[int]], list[bytes]]:
    """Return a function that reads the truth."""

    def truth(starts: list[int]) -> list[bytes]:
        with path.open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), READ_BYTES, start) for start in starts]

    return truth


def single_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """One small read after another."""
    for state in STATES:
        n = sizes.hot_singles if state == "hot" else sizes.cold_singles
        kinds = {
            "open file": open_file_contenders(str(path), state),
            "cat_file": cat_file_contenders(str(path)),
            "cat_ranges of 1": cat_one_contenders(str(path)),
        }
        for name, contenders in kinds.items():
            yield Case(
                "single 4 KiB",
                name,
                state,
                random_starts(n, sizes.file_bytes),
                list(contenders),
                n,
                "reads",
                [path],
                blocks_of(path),
            )


# -- batches


def batch_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Many small reads at once."""
    for state in STATES:
        yield Case(
            "batch",
            f"{sizes.batch:,} x 4 KiB",
            state,
            random_starts(sizes.batch, sizes.file_bytes),
            list(batch_contenders(str(path), state)),
            sizes.batch,
            "reads",
            [path],
            blocks_of(path),
        )


# -- cat_ranges, every way


def cat_ranges_inputs(
    path: Path, many: list[Path], sizes: Sizes
) -> dict[str, tuple[Callable[[np.random.Generator], Spans], int]]:
    """Return the inputs of each case, and how many ranges they have."""
    n, one = sizes.cat_ranges, str(path)
    starts = random_starts(n, sizes.file_bytes)

    def spans(first: list[int]) -> Spans:
        return [one] * len(first), first, [start + READ_BYTES for start in first]

    def adjacent(rng: np.random.Generator) -> Spans:
        begin = int(rng.integers(0, sizes.file_bytes - n * READ_BYTES))
        return spans([begin + k * READ_BYTES for k in range(n)])

    def files(rng: np.random.Generator) -> Spans:
        paths = [str(many[k]) for k in rng.permutation(len(many)).tolist() for _ in range(5)]
        first = rng.integers(0, 60 * KIB, len(paths)).tolist()
        return paths, first, [start + READ_BYTES for start in first]

    def large(rng: np.random.Generator) -> Spans:
        lengths = rng.integers(MIB, 8 * MIB, sizes.large)
        first = rng.integers(0, sizes.file_bytes - 8 * MIB, sizes.large)
        return [one] * sizes.large, first.tolist(), (first + lengths).tolist()

    return {
        "4 KiB, unsorted": (lambda rng: spans(starts(rng)), n),
        "4 KiB, sorted": (lambda rng: spans(sorted(starts(rng))), n),
        "4 KiB, adjacent": (adjacent, n),
        f"4 KiB, 5 of each of {len(many)} files": (files, 5 * len(many)),
        "1 to 8 MiB": (large, sizes.large),
        "10 ranges": (lambda rng: spans(starts(rng)[:10]), 10),
    }


def spans_truth(given: Spans) -> list[bytes]:
    """Read the ranges plainly."""
    answers = []
    for path, start, end in zip(*given, strict=True):
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            answers.append(os.pread(file.fileno(), end - start, start))
    return answers


def cat_ranges_cases(path: Path, many: list[Path], sizes: Sizes) -> Iterator[Case]:
    """`cat_ranges` must not be slower than fsspec's own on any of these."""
    for name, (make, n) in cat_ranges_inputs(path, many, sizes).items():
        for state in STATES:
            filesystems: list[tuple[str, Any]] = [
                *headrace_modes(("lite", "standard")),
                ("fsspec local", LocalFileSystem()),
            ]
            contenders = [
                Contender(label, lambda given, fs=fs: fs.cat_ranges(*given)) for label, fs in filesystems
            ]
            files = many if "files" in name else [path]
            yield Case("cat_ranges", name, state, make, contenders, n, "ranges", files, spans_truth)


# -- one file from one end to the other


def stream_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Read on and on in one open file."""
    places = sizes.file_bytes // sizes.stream_bytes

    def begin(rng: np.random.Generator) -> int:
        return int(rng.integers(places)) * sizes.stream_bytes

    openers: list[tuple[str, Callable[[str], Any]]] = [
        *((name, partial(fs.open, mode="rb")) for name, fs in headrace_modes(("lite", "standard"))),
        ("fsspec local", partial(LocalFileSystem().open, mode="rb")),
        ("pyarrow native", pyarrow.fs.LocalFileSystem().open_input_file),
    ]
    for block, state in product((64 * KIB, MIB, 8 * MIB, 64 * MIB), STATES):
        yield Case(
            "stream",
            f"{block // KIB:,} KiB at a time",
            state,
            begin,
            [Contender(name, _streams(opener, str(path), block, sizes)) for name, opener in openers],
            sizes.stream_bytes,
            "bytes",
            [path],
            _streams(partial(open, mode="rb", buffering=0), str(path), block, sizes),
        )


def _streams(
    opener: Callable[[str], Any], path: str, block: int, sizes: Sizes
) -> Callable[[int], list[bytes]]:
    """Read blocks and drop them, but for the ends of each: what keeps all would measure fresh memory."""

    def run(start: int) -> list[bytes]:
        ends = []
        with opener(path) as file:
            file.seek(start)
            for _ in range(sizes.stream_bytes // block):
                data = file.read(block)
                ends.append(data[:16] + data[-16:] + len(data).to_bytes(8, "little"))
        return ends

    return run


# -- beside a busy thread


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    """Compute in pure Python on another thread."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(k * k for k in range(1000))

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def busy_cases(path: Path, sizes: Sizes) -> Iterator[Case]:
    """Small hot reads, idle and beside a busy thread; the rates of the two are to be compared."""
    n = min(sizes.batch, 20_000)
    for label, around in (("idle", contextlib.nullcontext), ("one busy thread", busy_thread)):
        yield Case(
            "busy",
            f"4 KiB, {label}",
            "hot",
            random_starts(n, sizes.file_bytes),
            list(busy_contenders(path, n, around)),
            n,
            "reads",
            [path],
            starts_threads=around is busy_thread,
        )


def busy_contenders(path: Path, n: int, around: Callable[[], Any]) -> Iterator[Contender]:
    """Return contenders for both; plain ones do a part, as each of their reads waits for the GIL.

    The control never gives the GIL up by itself: what it keeps of its idle rate is all that a thread can.
    """
    yield Contender("control: no read, pure Python", partial(_inside, around, _compute_each))
    for name, fs in headrace_modes(("lite", "standard")):
        read = read_ranges(fs, str(path))
        yield Contender(f"{name} read_ranges", partial(_inside, around, read))
    for name, fs in headrace_modes(("lite",)):
        yield Contender(f"{name} cat_file", partial(_inside, around, cat_each(fs.cat_file, str(path))))
    few = max(n // 100, 40)
    fd = os.open(path, os.O_RDONLY)
    cat = cat_ranges(LocalFileSystem(), str(path))
    plain: list[tuple[str, Callable[[list[int]], Any]]] = [
        ("os.preadv loop", lambda starts: _preadv_loop(fd, starts[:few])),
        ("fsspec local cat_ranges", lambda starts: cat(starts[:few])),
    ]
    for name, run in plain:
        yield Contender(name, partial(_inside, around, run), share=few / n)


def _inside(around: Callable[[], Any], run: Callable[[list[int]], Any], starts: list[int]) -> Any:
    with around():
        return run(starts)


def _compute_each(starts: list[int]) -> None:
    """Compute for some microseconds for each read that others make."""
    for _ in starts:
        sum(k * k for k in range(150))


def _preadv_loop(fd: int, starts: list[int]) -> list[bytearray]:
    out = bytearray(READ_BYTES)
    for start in starts:
        os.preadv(fd, [out], start)
    return [out]


# -- dataset scans


def scan_cases(folder: Path, files: list[Path]) -> Iterator[Case]:
    """Find and read a dataset through `pyarrow.dataset`."""
    filesystems: list[tuple[str, Any]] = [
        ("pyarrow native", pyarrow.fs.LocalFileSystem()),
        *headrace_modes(("lite", "standard")),
        ("fsspec local", LocalFileSystem()),
    ]
    rows = ds.dataset(str(folder)).count_rows()
    besides: list[tuple[str, Callable[[], Any]]] = [("", contextlib.nullcontext), (", 1 busy", busy_thread)]
    chosen = (("all columns", None), ("2 columns", TWO_COLUMNS))
    for (label, columns), (beside, around), state in product(chosen, besides, STATES):
        contenders = [Contender(name, _scan(fs, str(folder), columns)) for name, fs in filesystems]
        yield Case(
            "scan",
            f"lineitem, {rows:,} rows, {label}{beside}",
            state,
            lambda _rng: None,
            contenders,
            rows,
            "rows",
            files,
            _scan(pyarrow.fs.LocalFileSystem(), str(folder), columns),
            around,
        )


def _scan(fs: Any, folder: str, columns: list[str] | None) -> Callable[[Any], pa.Table]:
    return lambda _given: ds.dataset(folder, filesystem=fs, format="parquet").to_table(columns=columns)


# -- promises


def promises(results: Sequence[Result]) -> Iterator[Promise]:
    """Return every ratio that the project makes a promise about, kept or missed."""
    for case in cases_of(results, "single 4 KiB"):
        yield from case.against("headrace lite", "headrace standard", 2 if case.state == "hot" else None)
        yield from case.against("headrace standard", "hand-over", 1)
        yield from _each_mode(case, "", "fsspec local", 1 if case.name.startswith("cat_ranges") else None)
    for case in cases_of(results, "batch"):
        is_cold = case.state == "cold"
        yield from _each_mode(case, " cat_ranges", "fsspec local cat_ranges", 5 if is_cold else 1)
        yield from _each_mode(case, " cat_ranges", "obstore get_ranges", 5 if is_cold else None)
    for case in cases_of(results, "cat_ranges"):
        yield from _each_mode(case, "", "fsspec local", 1)
    for case in cases_of(results, "stream"):
        yield from _each_mode(case, "", "fsspec local", None)
    for case in cases_of(results, "scan"):
        yield from _each_mode(case, "", "pyarrow native", _least_of_a_scan(case))
    for idle, busy in pairwise(cases_of(results, "busy")):
        for name in busy.contenders:
            least = 0.5 if name.startswith("headrace") else None  # of peers and the control there is none
            yield from ratio(f"{name} / the same idle", str(busy), least, busy.one(name), idle.one(name))


def _each_mode(case: Rates, way: str, peer: str, least: float | None) -> Iterator[Promise]:
    for mode in ("lite", "standard"):
        yield from case.against(f"headrace {mode}{way}", peer, least)


def _least_of_a_scan(case: Rates) -> float | None:
    """Within 3%, and cold projections no slower at all; of scans beside a busy thread nothing is promised."""
    if case.name.endswith("busy"):
        return None
    return 1 if case.state == "cold" and case.name.endswith("2 columns") else 0.97


SECTIONS = ("single", "batch", "cat_ranges", "stream", "busy", "scan")


def make_cases(sections: Sequence[str], data_dir: Path, sizes: Sizes) -> list[Case]:
    """Make the data and the cases of the sections asked for."""
    path = random_file(data_dir / f"random-{sizes.file_bytes}.bin", sizes.file_bytes)
    cases: list[Case] = []
    if "single" in sections:
        cases += single_cases(path, sizes)
    if "batch" in sections:
        cases += batch_cases(path, sizes)
    if "cat_ranges" in sections:
        many = small_files(data_dir / "small", sizes.small_files, 64 * KIB)
        cases += cat_ranges_cases(path, many, sizes)
    if "stream" in sections:
        cases += stream_cases(path, sizes)
    if "busy" in sections:
        cases += busy_cases(path, sizes)
    if "scan" in sections:
        files = lineitem(data_dir, sizes.scale)
        cases += scan_cases(files[0].parent, files)
    return cases


def main() -> None:
    """Run what is asked for and report."""
    given = parse_sections(parser(__doc__ or ""), SECTIONS)
    prepare()
    sizes = QUICK if given.quick else FULL
    cases = make_cases(given.sections, given.data_dir, sizes)
    results = run_all(cases, given.rounds)
    title = f"local reads, medians of {given.rounds} alternating runs"
    show_results(results, title)
    found = list(promises(results))
    show_promises(found)
    facts = {"rounds": given.rounds, "promises": promises_as_json(found), "results": as_json(results)}
    save(given.out, "local_reads", facts, draw_rates(results, title))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # fsspec's own files under Arrow abort the interpreter at its end; all is written by now.
    os._exit(0)
