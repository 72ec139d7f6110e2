"""Read a hundred thousand small ranges in one call, into one buffer."""

import tempfile
from pathlib import Path

import numpy as np

import headrace

RECORD_BYTES = 64
RECORDS = 200_000


def main() -> None:
    """Gather records of fixed size, in any order, and look at them with NumPy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.bin"
        records = np.arange(RECORDS * RECORD_BYTES // 8, dtype="<i8").reshape(RECORDS, -1)
        records.tofile(path)

        filesystem = headrace.HeadraceFileSystem(target_protocol="file")
        picked = np.random.default_rng(7).integers(0, RECORDS, 100_000)
        starts = picked * RECORD_BYTES
        batch = filesystem.read_ranges(str(path), starts, starts + RECORD_BYTES)

        column = batch.to_arrow()
        first = np.frombuffer(batch[0], "<i8")
        print(f"{len(batch):,} ranges, {column.nbytes:,} bytes as an Arrow column")
        assert (first == records[picked[0]]).all()
        assert column[99_999].as_py() == records[picked[99_999]].tobytes()

        # Of an open file: on object stores, too, all of the version that was opened.
        with filesystem.open(path) as file:
            again = filesystem.read_ranges(file, starts[:10], starts[:10] + RECORD_BYTES)
        assert again.to_pylist() == batch.to_pylist()[:10]

        # The same without waiting: ask, do something else, then take the result.
        read = filesystem.submit_ranges(str(path), starts[:10], starts[:10] + RECORD_BYTES)
        assert read.result(timeout=30).to_pylist() == batch.to_pylist()[:10]


if __name__ == "__main__":
    main()
