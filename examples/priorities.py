"""Point reads that somebody waits for, during a scan that nobody does.

A lower priority is more urgent. `with_priority` is a cheap view of the same scheduler: the scan
gets a view with priority 10; the point reads ask for -1 by the context they run in.
"""

import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import headrace


def scan(filesystem: headrace.HeadraceFileSystem, folder: Path, rows: list[int]) -> None:
    """Read a whole dataset, and note how many rows it had."""
    dataset = ds.dataset(str(folder), filesystem=filesystem, format="parquet")
    rows.append(sum(batch.num_rows for batch in dataset.to_batches()))


def main() -> None:
    """Look records up while a scan runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "table"
        folder.mkdir()
        table = pa.table({"value": np.random.default_rng(1).random(1_000_000)})
        pq.write_table(table, folder / "values.parquet", row_group_size=100_000)
        records = Path(name) / "records.bin"
        records.write_bytes(bytes(range(256)) * 4_096)

        filesystem = headrace.HeadraceFileSystem(target_protocol="file")
        rows: list[int] = []
        background = filesystem.with_priority(10)
        scanning = threading.Thread(target=scan, args=(background, folder, rows))
        scanning.start()
        with headrace.priority(-1):
            for index in (7, 4_000, 19):
                found = filesystem.cat_file(str(records), index * 256, index * 256 + 256)
                assert found == bytes(range(256))
        scanning.join()
        print(f"3 records looked up during a scan of {rows[0]:,} rows")
        assert rows == [1_000_000]


if __name__ == "__main__":
    main()
