"""Read Parquet and CSV with Dask through headrace: filesystem= or a chained URL."""

import tempfile
from pathlib import Path

import dask.dataframe as dd
import pandas as pd

import headrace


def main() -> None:
    """Read the same rows both ways and compare them."""
    with tempfile.TemporaryDirectory() as folder:
        for part in range(3):
            frame = pd.DataFrame({"part": part, "value": range(1_000)})
            frame.to_parquet(Path(folder) / f"{part}.parquet")
            frame.to_csv(Path(folder) / f"{part}.csv", index=False)

        filesystem = headrace.HeadraceFileSystem(target_protocol="file")
        parquet = dd.read_parquet(f"{folder}/*.parquet", filesystem=filesystem)
        csv = dd.read_csv(f"headrace::file://{folder}/*.csv")
        sums = [frame.groupby("part")["value"].sum().compute() for frame in (parquet, csv)]
        print(pd.concat(sums, axis=1, keys=["parquet", "csv"]))
        assert sums[0].tolist() == sums[1].tolist() == [499_500] * 3


if __name__ == "__main__":
    main()
