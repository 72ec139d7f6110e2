"""Scans a Parquet dataset in one of several ways and ends; run by ``test_exit.py``.

Arguments: a way to read (``headrace`` or ``plain``), a way to end, the target's protocol, the
dataset's path, the target's options as JSON.  The mode comes from the environment.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import fsspec
import pyarrow.dataset
import slow

READER, ENDING, PROTOCOL, PATH, OPTIONS = sys.argv[1:6]

kept: list[Any] = []
"""What is still alive when the interpreter goes down."""


def filesystem() -> Any:
    """Make it; headrace, whose exit hook is under test, is not even imported for plain reads."""
    options = json.loads(OPTIONS)
    if READER == "plain":
        # The slow one, undelayed: Arrow replaces a class named LocalFileSystem by its own.
        return fsspec.filesystem("slow" if PROTOCOL == "file" else PROTOCOL, **options)
    import headrace
    from headrace.backends import fsspec_sync

    # One thread at a time would make the whole scan wait for its slow file.
    fsspec_sync.THREAD_SAFE |= {"slow.SlowFileSystem"}
    return headrace.HeadraceFileSystem(target_protocol=PROTOCOL, target_options=options)


def table(dataset: Any) -> int:
    return int(dataset.to_table().num_rows)


def live_iterator(dataset: Any) -> int:
    """Consume a part of it: Arrow's threads read ahead while the interpreter ends."""
    batches = dataset.to_batches(batch_size=1024)
    kept.append(batches)
    return int(next(batches).num_rows)


def slow_iterator(dataset: Any) -> int:
    """Leave reads in progress, on Arrow's threads, that take much longer than an exit may."""
    slow.delay_s, slow.only = 30.0, ".4."
    rows = live_iterator(dataset)
    assert slow.has_begun.wait(30)
    return rows


def alive(dataset: Any) -> int:
    """End with open files, reads that nobody takes, and a half-consumed iterator."""
    fs = filesystem()
    for name in dataset.files:
        file = fs.open(name, "rb")
        file.read(100)
        kept.append(file)
        if READER != "plain":
            kept.append(fs.submit_ranges(name, [0, 4096], [1024, 8192]))
    return live_iterator(dataset)


def failing(dataset: Any) -> int:
    slow_iterator(dataset)
    sys.exit(7)


WORK = {"table": table, "alive": alive, "failing": failing}

dataset = pyarrow.dataset.dataset(PATH, filesystem=filesystem())
kept.append(dataset)
rows = WORK[ENDING](dataset)
sys.stdout.write(f"{rows}\n")
