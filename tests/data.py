"""Make the data sets that the tests read.

Owns the TPC-H ``lineitem`` table in the forms that users have: four Parquet files, and a CSV, an
IPC and an ORC copy of its first rows.  `make_lineitem` runs ``tpchgen-cli`` (a PyPI package that
carries the binary), rewrites the strings as plain strings (``tpchgen-cli`` marks them as
``string_view``, which pyarrow can neither filter nor take) and keeps two row groups or more in a
file, so that a scan issues several reads per file.

A data set is built in a temporary directory beside its final place and renamed, so that a cache
directory shared by two test runs never shows a half-written one.  The generator is deterministic:
the same scale gives the same rows.  This module does not decide where data lives; the fixtures do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq

FILES = 4
LAYOUT_VERSION = 1

SCALE = float(os.environ.get("HEADRACE_TEST_SCALE", "0.1"))
"""Scale factor of the table that tests on disk read: 0.1 in the gate, 1 in the full run."""


@dataclass(frozen=True, slots=True)
class Lineitem:
    """Where one copy of the table lives, as paths of one filesystem (no protocol)."""

    root: str

    @property
    def parquet(self) -> str:
        """Directory of the Parquet files."""
        return f"{self.root}/parquet"

    @property
    def files(self) -> list[str]:
        """The Parquet files in order."""
        return [f"{self.parquet}/lineitem.{number}.parquet" for number in range(1, FILES + 1)]

    @property
    def csv(self) -> str:
        """Directory of the CSV copy of the first rows."""
        return f"{self.root}/csv"

    @property
    def ipc(self) -> str:
        """Directory of the IPC (Feather 2) copy of the first rows."""
        return f"{self.root}/ipc"

    @property
    def orc(self) -> str:
        """Directory of the ORC copy of the first rows."""
        return f"{self.root}/orc"


def make_lineitem(cache: Path, scale: float, part_rows: int = 60_000) -> Lineitem:
    """Return the table at `scale` under `cache`, made if it is not there yet."""
    final = cache / f"lineitem-v{LAYOUT_VERSION}-sf{scale:g}-{part_rows}"
    if not final.exists():
        building = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
        try:
            _build(building, scale, part_rows)
            _publish(building, final)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return Lineitem(str(final))


def _publish(building: Path, final: Path) -> None:
    try:
        building.rename(final)
    except OSError:
        if not final.exists():  # somebody else built the same rows first: theirs serve as well
            raise


def _build(directory: Path, scale: float, part_rows: int) -> None:
    layout = Lineitem(str(directory))
    raw = directory / "raw"
    _generate(raw, scale)
    for folder in (layout.parquet, layout.csv, layout.ipc, layout.orc):
        Path(folder).mkdir()
    for source, target in zip(sorted(raw.rglob("*.parquet")), layout.files, strict=True):
        _rewrite(source, Path(target))
    shutil.rmtree(raw)
    _write_copies(layout, part_rows)


def _generate(directory: Path, scale: float) -> None:
    program = Path(sys.executable).with_name("tpchgen-cli")
    options = ["-s", f"{scale:g}", "--tables=lineitem", f"--parts={FILES}", "--no-progress"]
    subprocess.run(
        [str(program), "parquet", *options, f"--output-dir={directory}"],
        check=True,
        capture_output=True,
    )


def _plain(field: pa.Field) -> pa.Field:
    kind = pa.string() if field.type == pa.string_view() else field.type
    return pa.field(field.name, kind)


def _rewrite(source: Path, target: Path) -> None:
    table = pq.read_table(source)
    table = table.cast(pa.schema([_plain(field) for field in table.schema]))
    pq.write_table(table, target, row_group_size=max(1, min(50_000, table.num_rows // 2)))


def _write_copies(layout: Lineitem, rows: int) -> None:
    part = pq.read_table(layout.files[0]).slice(0, rows).combine_chunks()
    pa.csv.write_csv(part, f"{layout.csv}/part.csv")
    pa.feather.write_feather(part, f"{layout.ipc}/part.arrow", compression="lz4", chunksize=max(1, rows // 8))
    pa.orc.write_table(part, f"{layout.orc}/part.orc", stripe_size=256 * 1024)
