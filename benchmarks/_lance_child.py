"""Takes rows of a Lance dataset and says how long that took; run by ``uring.py``.

Arguments: where the dataset is or is made, its rows, bytes of a row.  Prints the dataset's files as JSON,
then for each line with row numbers the seconds that `take` needed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT, ROWS, ROW_BYTES = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
PART = 100_000


def parts() -> Iterator[pa.RecordBatch]:
    """Make the rows, random bytes."""
    rng = np.random.default_rng(ROWS)
    for first in range(0, ROWS, PART):
        count = min(PART, ROWS - first)
        data = pa.py_buffer(rng.bytes(count * ROW_BYTES))
        offsets = pa.py_buffer(np.arange(count + 1, dtype=np.int64) * ROW_BYTES)
        column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, [None, offsets, data])
        yield pa.record_batch({"row": column})


if not ROOT.exists():
    schema = pa.schema({"row": pa.large_binary()})
    lance.write_dataset(parts(), str(ROOT), schema=schema)
dataset = lance.dataset(f"file+uring://{ROOT}")
files = [str(path) for path in ROOT.rglob("*") if path.is_file()]
sys.stdout.write(json.dumps(files) + "\n")
sys.stdout.flush()
for line in sys.stdin:
    rows = json.loads(line)
    began = perf_counter()
    table = dataset.take(rows)
    took = perf_counter() - began
    assert table.num_rows == len(rows)
    sys.stdout.write(f"{took}\n")
    sys.stdout.flush()
