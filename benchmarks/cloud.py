"""Ranged reads and dataset scans over HTTP: headrace's engines, s3fs, obstore and pyarrow's S3 filesystem.

nginx on the loopback is the object store, with 20 ms latency before each answer (see `_nginx.py`, which
says how to install it)::

    python benchmarks/cloud.py --out docs/benchmarks

Sections, each beside no, one and two busy Python threads (scans beside none and one):

* *rate*: many random ranges of one object in one call, 4 KiB and 1 MiB. Requests a second.
* *single*: 4 KiB ranges one after another. What a read takes, median and 99th percentile.
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
from _cloud_peers import Clients, make_clients, rate_contenders, scan_filesystems, single_contenders
from _nginx import NginxMissingError, nginx, write_listing
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


FULL = Sizes(GIB, 1000, 96, 15, 0.2)
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
    for busy in BUSY:
        ways = list(single_contenders(clients, path.name, 4 * KIB))
        yield range_case("single", path, sizes.singles, 4 * KIB, busy, ways)


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


@dataclass(frozen=True, slots=True)
class Promise:
    """A ratio of rates within the run, and what the project says it should be."""

    what: str
    least: float | None
    seen: float

    @property
    def is_kept(self) -> bool:
        """Whether it is at least what was promised."""
        return self.least is None or self.seen >= self.least


class Rates:
    """The rates of a run, by case and contender."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._rows = {(row.section, row.case): {} for row in results}
        for row in results:
            self._rows[row.section, row.case][row.contender] = row.rate

    def cases(self, section: str) -> list[str]:
        """Return the cases of a section."""
        return [case for found, case in self._rows if found == section]

    def best(self, section: str, case: str, *names: str) -> float | None:
        """Return the best rate of the contenders whose name is one of `names`, or begins with ``NAME,``."""
        rows = self._rows.get((section, case), {})
        rates = [rate for label, rate in rows.items() if label in names or label.split(",")[0] in names]
        return max(rates, default=None)

    def one(self, section: str, case: str, name: str) -> float | None:
        """Return the rate of one contender."""
        return self._rows.get((section, case), {}).get(name)


def promises(rates: Rates) -> Iterator[Promise]:
    """Return what was promised of this run's cases; peers are taken at their best."""
    ours, theirs = "headrace obstore", "headrace fsspec"
    idle, two = "4 KiB, idle", "4 KiB, 2 busy"
    alone = rates.one("rate", idle, ours)
    crowded = rates.one("rate", two, ours)
    yield from _ratio("native engine, 2 busy threads / idle", 0.7, crowded, alone)
    yield from _ratio("native engine / s3fs, 2 busy threads", 25, crowded, rates.best("rate", two, "s3fs"))
    text = "native engine, versions checked / s3fs, 2 busy threads"
    checked = rates.one("rate", two, f"{ours}, open files")
    yield from _ratio(text, 10, checked, rates.best("rate", two, "s3fs"))
    yield from _ratio("native engine / s3fs, idle", 4, alone, rates.best("rate", idle, "s3fs"))
    text = "native engine / pyarrow S3 as it comes, idle"
    yield from _ratio(text, 2, alone, rates.one("rate", idle, "pyarrow S3"))
    text = "native engine / pyarrow S3 at its best, idle"
    yield from _ratio(text, 2, alone, rates.best("rate", idle, "pyarrow S3"))
    for section in ("rate", "single"):
        for case in rates.cases(section):
            text = f"s3fs engine / s3fs, {section}, {case}"
            yield from _ratio(text, 1, rates.one(section, case, theirs), rates.best(section, case, "s3fs"))
    for case in rates.cases("scan"):
        for engine in (ours, theirs):
            for peer in ("pyarrow S3", "s3fs"):
                text = f"{engine} / {peer}, scan, {case}"
                yield from _ratio(text, None, rates.one("scan", case, engine), rates.best("scan", case, peer))


def _ratio(what: str, least: float | None, rate: float | None, other: float | None) -> Iterator[Promise]:
    if rate is not None and other is not None:
        yield Promise(what, least, rate / other)


def show_promises(found: Sequence[Promise]) -> None:
    """Print promised and seen, what is missed in bold."""
    table = Table("ratio of rates within this run", "promised", "seen")
    for one in found:
        seen = f"{one.seen:.2f}" if one.is_kept else f"[bold red]{one.seen:.2f}[/]"
        table.add_row(one.what, "" if one.least is None else f">= {one.least:g}", seen)
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
    found = list(promises(Rates(results)))
    show_promises(found)
    facts = {
        "rounds": given.rounds,
        "latency_s": LATENCY_S,
        "sizes": asdict(sizes),
        "not_available": missing,
        "promises": [{**asdict(one), "is_kept": one.is_kept} for one in found],
        "results": as_json(results),
    }
    save(given.out, "cloud", facts, draw_rates(results, title))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # fsspec's own files under Arrow abort the interpreter at its end; all is written by now.
    os._exit(0)
