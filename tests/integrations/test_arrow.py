"""pyarrow reads datasets through headrace: the same answers as over the plain filesystem.

Every operation runs over the disk (the table at the scale of ``HEADRACE_TEST_SCALE``) and over S3
(a smaller one; moto is slow), under lite, standard, off and the serialized variants.  The plain
filesystem's answer is computed once per store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import headrace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import data

FILTER = (pc.field("l_quantity") < pa.scalar(10, pa.decimal128(15, 2))) & (pc.field("l_shipmode") == "RAIL")
COLUMNS = ["l_orderkey", "l_extendedprice", "l_comment"]


def _parquet(fs: Any, layout: data.Lineitem) -> ds.Dataset:
    return ds.dataset(layout.parquet, filesystem=fs)


def to_table(fs: Any, layout: data.Lineitem) -> Any:
    return _parquet(fs, layout).to_table()


def projection(fs: Any, layout: data.Lineitem) -> Any:
    return _parquet(fs, layout).to_table(columns=COLUMNS)


def no_pre_buffer(fs: Any, layout: data.Lineitem) -> Any:
    scan = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    return _parquet(fs, layout).to_table(columns=COLUMNS[:2], fragment_scan_options=scan)


def filtered(fs: Any, layout: data.Lineitem) -> Any:
    return _parquet(fs, layout).to_table(columns=COLUMNS, filter=FILTER)


def head(fs: Any, layout: data.Lineitem) -> Any:
    return _parquet(fs, layout).head(1000)


def count_rows(fs: Any, layout: data.Lineitem) -> Any:
    return _parquet(fs, layout).count_rows()


def count_filtered(fs: Any, layout: data.Lineitem) -> Any:
    return _parquet(fs, layout).count_rows(filter=FILTER)


def take(fs: Any, layout: data.Lineitem) -> Any:
    dataset = _parquet(fs, layout)
    rows = dataset.count_rows()
    return dataset.take([rows - 1, 0, rows // 2, 7, 7], columns=COLUMNS)


def to_batches(fs: Any, layout: data.Lineitem) -> Any:
    batches = _parquet(fs, layout).to_batches(columns=COLUMNS, batch_size=10_000)
    return pa.Table.from_batches(batches)


def read_table(fs: Any, layout: data.Lineitem) -> Any:
    return pq.read_table(layout.parquet, filesystem=fs, columns=COLUMNS, filters=FILTER)


def read_one_file(fs: Any, layout: data.Lineitem) -> Any:
    with fs.open(layout.files[1], "rb") as file:
        return pq.ParquetFile(file).read_row_group(1)


def read_metadata(fs: Any, layout: data.Lineitem) -> Any:
    return [pq.read_metadata(path, filesystem=fs).to_dict() for path in layout.files]


def csv(fs: Any, layout: data.Lineitem) -> Any:
    return ds.dataset(layout.csv, format="csv", filesystem=fs).to_table()


def ipc(fs: Any, layout: data.Lineitem) -> Any:
    return ds.dataset(layout.ipc, format="ipc", filesystem=fs).to_table(columns=COLUMNS)


def feather(fs: Any, layout: data.Lineitem) -> Any:
    with fs.open(f"{layout.ipc}/part.arrow", "rb") as file:
        return pa.feather.read_table(file, columns=COLUMNS)


def orc(fs: Any, layout: data.Lineitem) -> Any:
    return ds.dataset(layout.orc, format="orc", filesystem=fs).to_table(columns=COLUMNS)


OPERATIONS: list[Callable[[Any, data.Lineitem], Any]] = [
    to_table,
    projection,
    no_pre_buffer,
    filtered,
    head,
    count_rows,
    count_filtered,
    take,
    to_batches,
    read_table,
    read_one_file,
    read_metadata,
    csv,
    ipc,
    feather,
    orc,
]


@dataclass
class Store:
    """One place where the table lives, and what the plain filesystem there answered."""

    protocol: str
    layout: data.Lineitem
    target_options: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> Any:
        return fsspec.filesystem(self.protocol, **self.target_options)

    def headrace(self, options: dict[str, object]) -> headrace.HeadraceFileSystem:
        return headrace.HeadraceFileSystem(
            target_protocol=self.protocol, target_options=self.target_options, **options
        )

    def expected(self, operation: Callable[[Any, data.Lineitem], Any]) -> Any:
        name = operation.__name__
        if name not in self.answers:
            self.answers[name] = operation(self.plain, self.layout)
        return self.answers[name]


@pytest.fixture(scope="module")
def disk(lineitem: data.Lineitem) -> Store:
    return Store("file", lineitem)


@pytest.fixture(scope="module")
def bucket(s3_lineitem: data.Lineitem, s3_server: dict[str, object]) -> Store:
    return Store("s3", s3_lineitem, s3_server)


def _is_same(got: Any, expected: Any) -> bool:
    if isinstance(expected, pa.Table):
        return got.schema == expected.schema and got.equals(expected)
    return bool(got == expected)


def test_the_data_is_worth_reading(disk: Store) -> None:
    table = disk.expected(to_table)
    assert table.num_rows == disk.expected(count_rows) > 1_000
    assert 0 < disk.expected(filtered).num_rows < table.num_rows
    assert disk.expected(csv).num_rows == disk.expected(orc).num_rows > 1_000
    assert all(len(found["row_groups"]) > 1 for found in disk.expected(read_metadata))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_disk(
    operation: Callable[[Any, data.Lineitem], Any], disk: Store, options: dict[str, object]
) -> None:
    got = operation(disk.headrace(options), disk.layout)
    assert _is_same(got, disk.expected(operation))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bucket(
    operation: Callable[[Any, data.Lineitem], Any],
    bucket: Store,
    options: dict[str, object],
    cloud_engine: str,
) -> None:
    got = operation(bucket.headrace(options), bucket.layout)
    assert _is_same(got, bucket.expected(operation))


def _write_dataset(fs: Any, layout: data.Lineitem, target: str) -> None:
    scanner = _parquet(fs, layout).scanner(columns=[*COLUMNS, "l_returnflag"])
    ds.write_dataset(
        scanner,
        target,
        filesystem=fs,
        format="parquet",
        partitioning=["l_returnflag"],
        partitioning_flavor="hive",
        preserve_order=True,
    )


def _read_back(fs: Any, target: str) -> pa.Table:
    table = ds.dataset(target, filesystem=fs, partitioning="hive").to_table()
    return table.sort_by([("l_orderkey", "ascending"), ("l_comment", "ascending")])


def _check_written(store: Store, options: dict[str, object], root: str) -> None:
    wrapped = store.headrace(options)
    _write_dataset(wrapped, store.layout, f"{root}/ours")
    _write_dataset(store.plain, store.layout, f"{root}/plain")
    expected = _read_back(store.plain, f"{root}/plain")
    assert expected.num_rows == store.expected(count_rows)
    assert _read_back(store.plain, f"{root}/ours").equals(expected)
    assert _read_back(wrapped, f"{root}/ours").equals(expected)


def test_write_dataset_on_disk(
    small_lineitem: data.Lineitem, tmp_path: Path, options: dict[str, object]
) -> None:
    _check_written(Store("file", small_lineitem), options, str(tmp_path))


def test_write_dataset_in_a_bucket(
    bucket: Store, options: dict[str, object], cloud_engine: str, request: pytest.FixtureRequest
) -> None:
    root = f"{bucket.layout.root}-written/{request.node.callspec.id}"
    _check_written(bucket, options, root)


def test_a_url_that_pyarrow_resolves(disk: Store, environment_mode: str) -> None:
    dataset = ds.dataset(f"fsspec+headrace::file://{disk.layout.parquet}")
    assert dataset.to_table(columns=COLUMNS).equals(disk.expected(projection)), environment_mode


def test_concurrent_scans_of_one_filesystem(disk: Store, options: dict[str, object]) -> None:
    fs = disk.headrace(options)
    work = [projection, filtered, take, count_filtered, ipc, orc]
    with ThreadPoolExecutor(len(work)) as pool:
        answers = list(pool.map(lambda operation: operation(fs, disk.layout), work))
    for operation, got in zip(work, answers, strict=True):
        assert _is_same(got, disk.expected(operation)), operation.__name__


@pytest.mark.parametrize("asked", ["data", "data/", "./data", "data/../data", ".", "data_12:30"])
def test_a_dataset_by_a_relative_path(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """Arrow wants what is found in a folder to be named by the folder as it was asked for."""
    monkeypatch.chdir(tmp_path)
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    folder = asked if ":" in asked else "data"
    ds.write_dataset(
        table, folder, format="parquet", partitioning=["b"], partitioning_flavor="hive",
        filesystem=headrace.HeadraceFileSystem(target_protocol="file", **options),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "data" if asked == "." else tmp_path)
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    found = ds.dataset(asked, format="parquet", filesystem=fs, partitioning="hive").to_table()
    assert found.sort_by("a").to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
