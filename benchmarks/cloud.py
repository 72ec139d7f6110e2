"""Ranged reads and dataset scans over HTTP: headrace's engines, s3fs, obstore and pyarrow's S3 filesystem.

nginx on the loopback is the object store, with 20 ms latency before each answer (see `_nginx.py`, which
says how to install it)::

    python benchmarks/cloud.py --out docs/benchmarks

Sections, each beside no, one and two busy Python threads (scans beside none and one):

* *rate*: many random ranges of one object in one call, 4 KiB and 1 MiB. Requests a second.
* *single*: ranges of 4 KiB and of 1 MiB one after another. What a read takes, median and 99th percentile, in
  a table of its own.
* *scan*: ``pyarrow.dataset`` over TPC-H lineitem, two columns and all, of a folder that is listed and of
  files that are named. Rows a second. Nobody has listings, footers or habits of an earlier run.
* *defaults*: what ``max_gap_bytes`` and ``max_op_bytes`` were chosen by; only where it is asked for.

At the end stand the ratios that the project makes promises about, missed ones in bold. `_cloud_peers.py` has
the contenders and their configuration. One that is not installed is left out and named.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    console,
    draw_rates,
    lineitem,
    parse_sections,
    parser,
    prepare,
    random_file,
    run_all,
    save,
    show_results,
)
from _cloud_defaults import Beside, default_cases
from _cloud_peers import (
    NATIVE,
    OPEN_FILES_OF_S3FS,
    Clients,
    make_clients,
    rate_contenders,
    scan_filesystems,
    single_contenders,
)
from _nginx import NginxMissingError, nginx, write_listing
from _promises import Promise, Rates, cases_of, promises_as_json, ratio, show_promises
from fsspec import AbstractFileSystem
from local_reads import TWO_COLUMNS, busy_thread
from rich.table import Table

from headrace import HeadraceFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

BUCKET = "bench"
LATENCY_S = 0.02
BUSY = (0, 1, 2)
SLOW_SHARES = (1 / 2, 1 / 8, 1 / 16)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    file_bytes: int
    small: int
    large: int
    singles: int
    scale: float


FULL = Sizes(GIB, 1000, 96, 40, 0.2)
QUICK = Sizes(256 * MIB, 64, 16, 5, 0.05)


@contextlib.contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Compute in pure Python on so many other threads."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(busy_thread())
        yield


def beside(count: int) -> str:
    """Name what goes on beside."""
    return "idle" if not count else f"{count} busy"


# -- ranges


def random_starts(n: int, file_bytes: int, nbytes: int) -> Callable[[np.random.Generator], list[int]]:
    """Return a function that makes blocks in random order, none twice."""
    return lambda rng: (rng.choice(file_bytes // nbytes, n, replace=False) * nbytes).tolist()


def blocks_of(path: Path, nbytes: int) -> Callable[[list[int]], list[bytes]]:
    """Return a function that reads the truth."""

    def truth(starts: list[int]) -> list[bytes]:
        with path.open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), nbytes, start) for start in starts]

    return truth


def range_case(section: str, path: Path, n: int, nbytes: int, busy: int, ways: list[Contender]) -> Case:
    """Return a case of `n` random ranges."""
    size = f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"
    return Case(
        section,
        f"{size}, {beside(busy)}",
        "hot",
        random_starts(n, path.stat().st_size, nbytes),
        ways,
        n,
        "requests",
        [path],
        blocks_of(path, nbytes),
        partial(busy_threads, busy),
    )


def rate_cases(clients: Clients, path: Path, sizes: Sizes) -> Iterator[Case]:
    """Many ranges in one call."""
    for nbytes, n in ((4 * KIB, sizes.small), (MIB, sizes.large)):
        for busy in BUSY:
            ways = list(rate_contenders(clients, path.name, nbytes, SLOW_SHARES[busy]))
            yield range_case("rate", path, n, nbytes, busy, ways)


def single_cases(clients: Clients, path: Path, sizes: Sizes) -> Iterator[Case]:
    """One range after another."""
    for nbytes, busy in product((4 * KIB, MIB), BUSY):
        ways = list(single_contenders(clients, path.name, nbytes))
        yield range_case("single", path, sizes.singles, nbytes, busy, ways)


# -- datasets


def scan_cases(clients: Clients, files: Sequence[Path], root: Path) -> Iterator[Case]:
    """Read a dataset."""
    paths = [f"{BUCKET}/{file.relative_to(root)}" for file in files]
    local = [str(file) for file in files]
    rows = ds.dataset(local).count_rows()
    filesystems = scan_filesystems(clients)
    sources: dict[str, Any] = {"a folder": paths[0].rpartition("/")[0], "named files": paths}
    for (label, columns), busy in product((("2 columns", TWO_COLUMNS), ("all columns", None)), BUSY[:2]):
        for kind, source in sources.items():
            yield Case(
                "scan",
                f"{rows:,} rows of {kind}, {label}, {beside(busy)}",
                "hot",
                lambda _rng: None,
                [Contender(name, scan(fs, source, columns)) for name, fs in filesystems.items()],
                rows,
                "rows",
                files,
                scan(pyarrow.fs.LocalFileSystem(), local, columns),
                partial(busy_threads, busy),
            )


def scan(fs: Any, source: str | list[str], columns: list[str] | None) -> Callable[[Any], Any]:
    """Return a function that opens the dataset and reads it, and knows nothing of it before."""

    def run(_given: Any) -> Any:
        opened = fs
        if isinstance(fs, HeadraceFileSystem):
            opened = HeadraceFileSystem(**fs.storage_options, skip_instance_cache=True)
        if isinstance(opened, AbstractFileSystem):
            opened.invalidate_cache()
        return ds.dataset(source, filesystem=opened, format="parquet").to_table(columns=columns)

    return run


# -- promises

OVER_S3FS = "headrace fsspec"
CHECKED = (f"{NATIVE}, one open file", f"{NATIVE}, open files")


def promises(results: Sequence[Result]) -> Iterator[Promise]:
    """Return all ratios that the project makes a promise about, kept or missed, and what a check costs."""
    rates = {case.name: case for case in cases_of(results, "rate")}
    for case in cases_of(results, "rate", "single", "scan"):
        if case.section == "rate":
            yield from _of_ranges(case, rates)
        if case.section == "scan":
            yield from _of_scans(case)
        yield from case.against(OVER_S3FS, "s3fs", 1)
        yield from case.against(f"{OVER_S3FS}, one open file", "s3fs", 1)
        yield from case.against_one(f"{OVER_S3FS}, open files", OPEN_FILES_OF_S3FS, 1)
        for ours in CHECKED:
            yield from case.against_one(ours, f"{ours}, unchecked")


def _of_ranges(case: Rates, rates: dict[str, Rates]) -> Iterator[Promise]:
    """Compare the native engine with its peers, of no one version and with versions checked."""
    for ours, beside_two in ((NATIVE, 25), *((name, 10) for name in CHECKED)):
        if case.name.endswith(beside(0)):
            yield from case.against(ours, "s3fs", 4)
            yield from case.against_one(ours, "pyarrow S3", 2)
            yield from case.against(ours, "pyarrow S3", 2)
        if case.name.endswith(beside(2)):
            idle = rates[case.name.replace(beside(2), beside(0))]
            yield from ratio(f"{ours} / the same idle", str(case), 0.7, case.one(ours), idle.one(ours))
            yield from case.against(ours, "s3fs", beside_two)


def _of_scans(case: Rates) -> Iterator[Promise]:
    """Compare scans with pyarrow's and s3fs's: of two columns something is promised."""
    of_two = "2 columns" in case.name
    is_idle = case.name.endswith(beside(0))
    for ours in (NATIVE, OVER_S3FS):
        yield from case.against(ours, "pyarrow S3", 1 / 0.6 if of_two and is_idle else None)
    yield from case.against(NATIVE, "s3fs", 20 if of_two and not is_idle else None)


# -- latencies


def latencies(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Return how long reads one after another took, by case and contender."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in results:
        if row.section == "single":
            half_s, most_s = row.percentile_s(50), row.percentile_s(99)
            read = {"reads": len(row.each_s), "p50_s": half_s, "p99_s": most_s}
            found.setdefault(row.case, {})[row.contender] = read
    return found


def show_latencies(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print them, if there are any: a line for each contender, a column for each case."""
    if not found:
        return
    table = Table("p50 / p99 of single reads, ms", *found)
    for name in next(iter(found.values())):
        cells = [f"{of[name]['p50_s'] * 1e3:.1f} / {of[name]['p99_s'] * 1e3:.1f}" for of in found.values()]
        table.add_row(name, *cells)
    console.print(table)


# -- the run


def make_cases(sections: Sequence[str], clients: Clients, path: Path, data: Path, sizes: Sizes) -> list[Case]:
    """Make the cases of the sections asked for."""
    cases: list[Case] = []
    if "rate" in sections:
        cases += rate_cases(clients, path, sizes)
    if "single" in sections:
        cases += single_cases(clients, path, sizes)
    if "scan" in sections:
        cases += scan_cases(clients, lineitem(data, sizes.scale), data)
    if "defaults" in sections:
        beside_these = [Beside(beside(count), partial(busy_threads, count)) for count in BUSY[:2]]
        cases += default_cases(clients, path, beside_these)
    return cases


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[Path]:
    """Make a root for nginx in which `folder` is the bucket."""
    with tempfile.TemporaryDirectory(prefix="headrace-bucket-") as root:
        (Path(root) / BUCKET).symlink_to(folder.resolve(), target_is_directory=True)
        yield Path(root)


def run(given: Any, sizes: Sizes) -> tuple[list[Result], dict[str, str]]:
    """Serve the data and run the cases; returns the results and who is missing."""
    path = random_file(given.data_dir / f"random-{sizes.file_bytes}.bin", sizes.file_bytes)
    with bucket(given.data_dir) as root, nginx(root, LATENCY_S) as endpoint:
        if "scan" in given.sections:
            write_listing(root, BUCKET, lineitem(given.data_dir, sizes.scale), given.data_dir)
        clients = make_clients(endpoint, BUCKET, path.name)
        for name, why in clients.missing.items():
            console.print(f"[yellow]{name}: {why}[/]")
        cases = make_cases(given.sections, clients, path, given.data_dir, sizes)
        return run_all(cases, given.rounds), clients.missing


def main() -> None:
    """Run what is asked for and report."""
    options = parser(__doc__ or "")
    options.add_argument("--scale", type=float, help="TPC-H scale factor of the scans (default 0.2)")
    given = parse_sections(options, ("rate", "single", "scan"), on_demand=("defaults",))
    prepare()
    sizes = QUICK if given.quick else FULL
    if given.scale:
        sizes = Sizes(**{**asdict(sizes), "scale": given.scale})
    try:
        results, missing = run(given, sizes)
    except NginxMissingError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    title = (
        f"an object store with {LATENCY_S * 1e3:.0f} ms latency, medians of {given.rounds} alternating runs"
    )
    show_results(results, title)
    waited = latencies(results)
    show_latencies(waited)
    found = list(promises(results))
    show_promises(found)
    facts = {
        "rounds": given.rounds,
        "latency_s": LATENCY_S,
        "sizes": asdict(sizes),
        "not_available": missing,
        "latencies": waited,
        "promises": promises_as_json(found),
        "results": as_json(results),
    }
    save(given.out, "cloud", facts, draw_rates(results, title))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # fsspec's own files under Arrow abort the interpreter at its end; all is written by now.
    os._exit(0)
