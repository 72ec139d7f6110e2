"""Nothing goes round the scheduler: every data read of Arrow, pandas and Dask is an admitted op.

A recording filesystem, synchronous or asynchronous, lies under headrace.  For each read that
reaches it, it notes whether it ran inside an admitted op; afterwards the books must balance:

* no read outside an op;
* ``bytes_admitted == bytes_delivered + bytes_gap - bytes_shared``, plus what was asked for past the
  end of a file and could not be delivered, plus what was read ahead and not wanted;
* the bytes asked from the recording filesystem are exactly the bytes admitted.

And the order in which they reach it is the one that was promised: of what waits the file opened first, and in
it the lowest offset.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.bytes
import dask.dataframe as dd
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import recording
from targets import queued

import headrace
from headrace.backends import fsspec_sync

if TYPE_CHECKING:
    from collections.abc import Callable

    import data

# Dask calls pandas in ways that the newest pandas deprecates; that is between those two.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

COLUMNS = ["l_orderkey", "l_comment"]
_numbers = itertools.count(1)


def _url(protocol: str, path: str) -> str:
    return f"headrace::{protocol}://{path}"


def arrow_table(fs: Any, layout: data.Lineitem, _: Any) -> None:
    ds.dataset(layout.parquet, filesystem=fs).to_table()


def arrow_projection(fs: Any, layout: data.Lineitem, _: Any) -> None:
    ds.dataset(layout.parquet, filesystem=fs).to_table(columns=COLUMNS)


def arrow_without_pre_buffer(fs: Any, layout: data.Lineitem, _: Any) -> None:
    scan = ds.ParquetFragmentScanOptions(pre_buffer=False)
    ds.dataset(layout.parquet, filesystem=fs).to_table(columns=COLUMNS, fragment_scan_options=scan)


def arrow_take(fs: Any, layout: data.Lineitem, _: Any) -> None:
    ds.dataset(layout.parquet, filesystem=fs).take([0, 100, 5_000], columns=COLUMNS)


def arrow_csv(fs: Any, layout: data.Lineitem, _: Any) -> None:
    ds.dataset(layout.csv, format="csv", filesystem=fs).to_table()


def arrow_ipc(fs: Any, layout: data.Lineitem, _: Any) -> None:
    ds.dataset(layout.ipc, format="ipc", filesystem=fs).to_table(columns=COLUMNS)


def arrow_orc(fs: Any, layout: data.Lineitem, _: Any) -> None:
    ds.dataset(layout.orc, format="orc", filesystem=fs).to_table(columns=COLUMNS)


def parquet_read_table(fs: Any, layout: data.Lineitem, _: Any) -> None:
    pq.read_table(layout.parquet, filesystem=fs, columns=COLUMNS)


def pandas_filesystem(fs: Any, layout: data.Lineitem, _: Any) -> None:
    pd.read_parquet(layout.files[0], filesystem=fs, columns=COLUMNS)


def pandas_url(_: Any, layout: data.Lineitem, storage: Any) -> None:
    protocol = next(name for name in storage if name != "headrace")
    pd.read_parquet(_url(protocol, layout.files[0]), columns=COLUMNS, storage_options=storage)


def pandas_csv(_: Any, layout: data.Lineitem, storage: Any) -> None:
    protocol = next(name for name in storage if name != "headrace")
    pd.read_csv(_url(protocol, f"{layout.csv}/part.csv"), storage_options=storage)


def dask_filesystem(fs: Any, layout: data.Lineitem, _: Any) -> None:
    dd.read_parquet(layout.parquet, columns=COLUMNS, filesystem=fs).compute(scheduler="threads")


def dask_csv(_: Any, layout: data.Lineitem, storage: Any) -> None:
    protocol = next(name for name in storage if name != "headrace")
    url = _url(protocol, f"{layout.csv}/part.csv")
    dd.read_csv(url, blocksize=100_000, storage_options=storage).compute(scheduler="threads")


def dask_bytes(_: Any, layout: data.Lineitem, storage: Any) -> None:
    protocol = next(name for name in storage if name != "headrace")
    _sample, blocks = dask.bytes.read_bytes(
        _url(protocol, f"{layout.parquet}/*.parquet"), blocksize=50_000, **storage
    )
    dask.compute(*(block for file in blocks for block in file), scheduler="threads")


def plain_calls(fs: Any, layout: data.Lineitem, _: Any) -> None:
    path = layout.files[0]
    fs.cat_file(path)
    fs.cat_file(path, start=-100)
    fs.cat([path, layout.files[1]])
    fs.cat_ranges([path] * 3, [0, 500, 90_000], [100, 600, 90_100])
    fs.read_ranges(path, [0, 50, 50, 10_000], [100, 60, 200, 10_000])
    fs.submit_ranges(path, [0], [10]).result()
    fs.head(path, 10)
    fs.tail(path, 10)
    fs.read_block(path, 0, 10)
    fs.read_text(f"{layout.csv}/part.csv")
    with fs.open(path, "rb") as file:
        file.read(10)
        file.seek(-8, 2)
        file.read()
    with fs.open(f"{layout.csv}/part.csv", "r") as file:
        file.readline()


CONSUMERS: list[Callable[[Any, data.Lineitem, Any], None]] = [
    arrow_table,
    arrow_projection,
    arrow_without_pre_buffer,
    arrow_take,
    arrow_csv,
    arrow_ipc,
    arrow_orc,
    parquet_read_table,
    pandas_filesystem,
    pandas_url,
    pandas_csv,
    dask_filesystem,
    dask_csv,
    dask_bytes,
    plain_calls,
]


def _bytes_past_the_end(record: recording.ReadRecord) -> int:
    return record.end - max(record.start, min(record.end, os.path.getsize(record.path)))  # noqa: PTH202


@dataclass(frozen=True)
class Books:
    """What the scheduler counted and what the storage saw, at one moment."""

    stats: headrace.Stats
    records: list[recording.ReadRecord]

    @property
    def are_balanced(self) -> bool:
        stats = self.stats
        wanted = stats.bytes_delivered + stats.bytes_gap - stats.bytes_shared + stats.bytes_short
        return (
            stats.bytes_admitted == wanted + stats.bytes_abandoned
            and stats.in_flight_ops == stats.reserved_bytes == 0
        )

    @property
    def agree_with_storage(self) -> bool:
        if any(record.permit is None or record.permit.length < 0 for record in self.records):
            return self.are_balanced  # an op of unknown length: what it asks for is not known
        # What was read ahead may have been given up between its admission and its start.
        never_asked = self.stats.bytes_admitted - sum(r.end - r.start for r in self.records)
        never_started = self.stats.ops_admitted - len({r.permit for r in self.records})
        return (
            0 <= never_asked <= self.stats.bytes_abandoned
            and self.stats.bytes_short == sum(map(_bytes_past_the_end, self.records))
            and 0 <= never_started <= never_asked
        )


@pytest.mark.parametrize(
    ("protocol", "prefetch"), [("recording", "auto"), ("arecording", "auto"), ("arecording", "off")]
)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_nothing_goes_round_the_scheduler(
    consumer: Callable[[Any, data.Lineitem, Any], None],
    protocol: str,
    prefetch: str,
    scheduled_mode: str,
    small_lineitem: data.Lineitem,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    name = f"admission-{next(_numbers)}"
    # A budget of its own gives the test an engine, and so counters, of its own.
    ours = {"scheduler": scheduled_mode, "buffer_bytes": (1 << 30) + next(_numbers), "prefetch": prefetch}
    theirs = {"log": name}
    log = recording.read_log(name)
    fs = headrace.HeadraceFileSystem(target_protocol=protocol, target_options=theirs, **ours)
    consumer(fs, small_lineitem, {"headrace": ours, protocol: theirs})

    def books() -> Books:
        return Books(fs.stats(), log.records)

    # Arrow may return while threads of its own still finish reads that it no longer wants.
    wait_until(lambda: books().are_balanced and books().agree_with_storage)
    assert books().stats.bytes_delivered > 0
    if prefetch == "off" or protocol == "recording":
        assert books().stats.bytes_abandoned == 0
    assert log.records, "the consumer read nothing: the test shows nothing"
    assert log.outside == []


@pytest.mark.parametrize("protocol", ["recording", "arecording"])
def test_off_goes_round_the_scheduler(protocol: str, small_lineitem: data.Lineitem) -> None:
    """The recorder can tell: what it says of the other modes is no artefact."""
    log = recording.read_log("admission")
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol, target_options={"log": "admission"}, scheduler="off"
    )
    log.clear()
    arrow_projection(fs, small_lineitem, None)
    assert log.records
    assert log.outside == log.records


def pandas_folder(fs: Any, layout: data.Lineitem, _: Any) -> None:
    pd.read_parquet(layout.parquet, filesystem=fs, columns=COLUMNS)


@pytest.mark.parametrize("protocol", ["recording", "arecording"])
@pytest.mark.parametrize("consumer", [arrow_projection, pandas_folder])
def test_of_what_waits_the_first_file_and_the_lowest_offset_go_first(
    consumer: Callable[[Any, data.Lineitem, Any], None],
    protocol: str,
    scheduled_mode: str,
    small_lineitem: data.Lineitem,
    wait_until: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One op at a time, so that the order of the reads is the scheduler's own, and two are held.

    Files are opened in the order of their names. The first footer of the scan is held until those of the
    three others wait, and the next until data of the file whose footer came wait, too: the two footers that
    are left came before them.
    """
    monkeypatch.setattr("headrace.core.queue.AGEING_S", 1e6)  # nothing becomes old while a machine stalls
    # Else no file is opened while a read of another one is held.
    monkeypatch.setattr(fsspec_sync, "THREAD_SAFE", {"recording.RecordingFileSystem"})
    name = f"admission-{next(_numbers)}"
    ours = {"scheduler": scheduled_mode, "buffer_bytes": (1 << 30) + next(_numbers), "prefetch": "off"}
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol, target_options={"log": name}, serialize=True, **ours
    )
    log = recording.read_log(name)

    def hold(_record: recording.ReadRecord) -> None:
        if len(log.records) in (2, 3):  # the first is the look at the schema
            wait_until(lambda: queued(fs) >= 3)

    log.before_read = hold
    with headrace.trace() as traced:
        consumer(fs, small_lineitem, None)
    waiting: dict[int, tuple[str, int]] = {}
    last_ops = {}
    admitted = []
    for event in traced.events:
        if event.event == "queued":
            waiting[event.request], last_ops[event.request] = event.ranges[0][:2], event.end_op
        elif event.event == "admitted":
            assert waiting[event.request] == min(waiting.values())
            if event.end_op == last_ops[event.request]:
                del waiting[event.request]
            admitted += [(op.path, op.start, op.end) for op in event.ranges]
    assert [(record.path, record.start, record.end) for record in log.records] == admitted
