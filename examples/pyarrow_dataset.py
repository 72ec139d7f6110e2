"""Scan a folder of Parquet files with pyarrow.dataset through headrace."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import headrace


def main() -> None:
    """Make a few files, then project and filter them."""
    with tempfile.TemporaryDirectory() as folder:
        for day in range(4):
            table = pa.table({"day": [day] * 10_000, "value": range(10_000)})
            pq.write_table(table, Path(folder) / f"day-{day}.parquet", row_group_size=2_500)

        filesystem = headrace.HeadraceFileSystem(target_protocol="file")
        dataset = ds.dataset(folder, filesystem=filesystem, format="parquet")
        found = dataset.to_table(columns=["value"], filter=pc.field("day") == 2)
        print(f"{found.num_rows:,} of {dataset.count_rows():,} rows")
        print(filesystem.stats())
        assert found.num_rows == 10_000


if __name__ == "__main__":
    main()
