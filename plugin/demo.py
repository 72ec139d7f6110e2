"""The embedded default job: make a small dataset, scan it every way, compare the answers.

1. Four Parquet files of a shop's orders are written to a temporary folder: identifiers, timestamps,
   decimals, strings of few and of many values, several row groups each; the same bytes every time.
2. Each reader (`pyarrow.dataset`, Dask) scans them in each mode (off, lite, standard) through a
   `HeadraceFileSystem` of its own, after one uncounted scan that warms the page cache and imports.
3. Every answer (rows, quantity in all, orders by status) must be that of the data as it was made.

What a run shows is that everything works and gives the same answers. It is no benchmark: one run
each, hot, and decoding takes most of the time.

Threading: runs on the caller's thread; the readers use their own. The folder is removed at the end,
also when a scan fails.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from headrace.errors import HeadraceError
from headrace.filesystem import HeadraceFileSystem

DEFAULT_ROWS = 1_200_000
MODES = ("off", "lite", "standard")
_FILES = 4
_ROW_GROUPS = 4
_SEED = 20_240_229
_STATUSES = ("delivered", "shipped", "open", "returned", "cancelled")
_SHARES = (0.62, 0.17, 0.12, 0.06, 0.03)
_COUNTRIES = ("AT", "BR", "CA", "DE", "FR", "IN", "JP", "KE", "MX", "NZ", "PL", "SE", "US", "ZA")
_WORDS = (
    "leave at the door",
    "gift wrap please",
    "ring twice",
    "fragile",
    "second attempt",
    "weekend delivery",
    "no substitutes",
    "invoice by mail",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What every reader must find: rows, the sum of a column, and counts by status."""

    rows: int
    quantity: int
    by_status: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class DemoRun:
    """One scan: counts of headrace (0 in mode off, which it stays out of), bytes and seconds."""

    reader: str
    mode: str
    rows: int
    file_bytes: int
    bytes_read: int
    ops: int
    seconds: float

    @property
    def megabytes_per_second(self) -> float:
        """Bytes of the files over the time, whatever part of them was read."""
        return self.file_bytes / 1e6 / self.seconds


class DemoError(HeadraceError):
    """Two readers of the same data gave different answers."""


def run_demo(rows: int = DEFAULT_ROWS, directory: Path | None = None) -> list[DemoRun]:
    """Make the data, scan it in every mode with every reader, and clean up.

    Parameters
    ----------
    rows
        Orders to make; about 45 bytes each on disk.
    directory
        Where the temporary folder is made; None: the system's place.

    Returns
    -------
    list of DemoRun
        One for each reader and mode.

    Raises
    ------
    DemoError
        The answers differ.
    ModuleNotFoundError
        Dask's dataframes are not installed: ``pip install 'headrace[dask]'``.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-demo-", dir=directory) as folder:
        expected = write_orders(Path(folder), rows)
        runs = []
        for name, read in _READERS.items():
            read(_filesystem("off"), folder)  # uncounted: imports, and fills the page cache
            runs += [_run(name, read, mode, folder, expected) for mode in MODES]
        return runs


def _filesystem(mode: str) -> HeadraceFileSystem:
    return HeadraceFileSystem(target_protocol="file", scheduler=mode)


def _run(name: str, read: Reader, mode: str, folder: str, expected: Answer) -> DemoRun:
    filesystem = _filesystem(mode)
    before = filesystem.stats()
    started = time.perf_counter()
    answer = read(filesystem, folder)
    seconds = time.perf_counter() - started
    after = filesystem.stats()
    if answer != expected:
        raise DemoError(f"{name} in mode {mode} found {answer}, the data has {expected}")
    return DemoRun(
        reader=name,
        mode=filesystem.mode,  # ``off`` in the environment stands above any
        rows=answer.rows,
        file_bytes=sum(path.stat().st_size for path in Path(folder).iterdir()),
        bytes_read=after.bytes_read - before.bytes_read,
        ops=after.ops_completed - before.ops_completed,
        seconds=seconds,
    )


def write_orders(folder: Path, rows: int) -> Answer:
    """Write the dataset.

    Parameters
    ----------
    folder
        Where ``orders-0.parquet`` to ``orders-3.parquet`` go.
    rows
        Orders in all.

    Returns
    -------
    Answer
        What a scan must find.
    """
    rng = np.random.default_rng(_SEED)
    found = []
    for index, part in enumerate(np.array_split(np.arange(rows), _FILES)):
        table = _orders(rng, part)
        group_rows = max(1, -(-len(part) // _ROW_GROUPS))
        pq.write_table(table, folder / f"orders-{index}.parquet", row_group_size=group_rows)
        found.append(_answer(table))
    return _sum(found)


def _orders(rng: np.random.Generator, order_id: npt.NDArray[np.int64]) -> pa.Table:
    rows = len(order_id)
    second = order_id * 7 + rng.integers(0, 3600, rows)
    cents = (rng.lognormal(7.5, 1.1, rows)).astype(np.int64)
    return pa.table(
        {
            "order_id": order_id,
            "customer_id": rng.integers(1, 250_000, rows, dtype=np.int32),
            "placed_at": pa.array(second + 1_700_000_000, pa.timestamp("s")).cast("timestamp[us]"),
            "status": _choose(rng, _STATUSES, rows, _SHARES),
            "country": _choose(rng, _COUNTRIES, rows),
            "quantity": rng.integers(1, 30, rows, dtype=np.int64),
            "amount": _decimals(cents),
            "discount": np.round(rng.beta(1.2, 9.0, rows), 4),
            "tracking": pa.array(rng.integers(10**15, 10**16, rows)).cast(pa.string()),
            "note": _choose(rng, _WORDS, rows),
        }
    )


def _choose(
    rng: np.random.Generator,
    values: Sequence[str],
    rows: int,
    shares: Sequence[float] | None = None,
) -> pa.Array:
    picked = rng.choice(len(values), rows, p=shares).astype(np.int32)
    return pa.DictionaryArray.from_arrays(picked, list(values)).cast(pa.string())


def _decimals(cents: npt.NDArray[np.int64]) -> pa.Array:
    """Return whole cents as decimal(12, 2): Arrow keeps a decimal as two little-endian words."""
    words = np.zeros((len(cents), 2), "<i8")
    words[:, 0] = cents
    return pa.Array.from_buffers(pa.decimal128(12, 2), len(cents), [None, pa.py_buffer(words)])


def _answer(table: pa.Table | pa.RecordBatch) -> Answer:
    counts = table.column("status").value_counts().to_pylist()
    return Answer(
        rows=table.num_rows,
        quantity=table.column("quantity").to_numpy().sum().item(),
        by_status=_pairs({each["values"]: each["counts"] for each in counts}),
    )


def _pairs(counts: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((status, int(count)) for status, count in counts.items() if count))


def _sum(answers: Sequence[Answer]) -> Answer:
    by_status = dict.fromkeys(_STATUSES, 0)
    for answer in answers:
        for status, count in answer.by_status:
            by_status[status] += count
    rows = sum(answer.rows for answer in answers)
    return Answer(rows, sum(answer.quantity for answer in answers), _pairs(by_status))


def _read_with_arrow(filesystem: HeadraceFileSystem, folder: str) -> Answer:
    dataset = ds.dataset(folder, filesystem=filesystem, format="parquet")
    return _sum([_answer(batch) for batch in dataset.to_batches()])


def _read_with_dask(filesystem: HeadraceFileSystem, folder: str) -> Answer:
    try:
        import dask.dataframe as dd  # noqa: PLC0415
    except ImportError as error:
        raise ModuleNotFoundError("this needs pip install 'headrace[dask]'") from error
    frame = dd.read_parquet(folder, filesystem=filesystem, columns=["status", "quantity"])
    grouped = frame.groupby("status")["quantity"].agg(["count", "sum"])
    found: Any = grouped.compute(scheduler="threads")
    counts = found["count"]
    return Answer(int(counts.sum()), int(found["sum"].sum()), _pairs(counts.to_dict()))


Reader = Callable[[HeadraceFileSystem, str], Answer]
_READERS: dict[str, Reader] = {
    "pyarrow.dataset": _read_with_arrow,
    "dask.dataframe": _read_with_dask,
}


def render(runs: Sequence[DemoRun]) -> None:
    """Print a table of runs to stdout."""
    from rich.console import Console  # noqa: PLC0415
    from rich.filesize import decimal  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    title = f"{runs[0].rows:,} orders in {_FILES} Parquet files, {decimal(runs[0].file_bytes)}"
    table = Table(title=f"{title}; all answers equal", title_justify="left")
    for name in ("reader", "mode"):
        table.add_column(name)
    for name in ("rows", "bytes read", "ops", "time", "MB/s"):
        table.add_column(name, justify="right")
    for run in runs:
        is_off = run.ops == 0
        table.add_row(
            run.reader,
            run.mode,
            f"{run.rows:,}",
            "-" if is_off else decimal(run.bytes_read),
            "-" if is_off else f"{run.ops:,}",
            f"{run.seconds:.3f} s",
            f"{run.megabytes_per_second:,.0f}",
        )
    Console().print(table)
