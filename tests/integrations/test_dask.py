"""Dask reads through headrace: ``read_parquet``, ``read_csv``, ``read_bytes``, in every mode.

Three schedulers: synchronous and threaded in this process, and a `LocalCluster` of separate
processes, where the filesystem arrives pickled and the workers have settings of their own.
"""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Any

import dask
import dask.base
import dask.bytes
import dask.dataframe as dd
import data
import fsspec
import pytest
from distributed import Client, LocalCluster
from pandas.testing import assert_frame_equal
from pyarrow.fs import FSSpecHandler, PyFileSystem

import headrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

# Dask calls pandas in ways that the newest pandas deprecates; that is between those two.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

COLUMNS = ["l_orderkey", "l_quantity", "l_comment"]


def _over_files(options: dict[str, object]) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="file", **options)


def _over_s3(mode: str, s3_server: dict[str, object]) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="s3", target_options=s3_server, scheduler=mode)


def _frame(lazy: Any, scheduler: Any = "threads") -> pd.DataFrame:
    with dask.config.set(scheduler=scheduler):
        return lazy.compute().reset_index(drop=True)


@pytest.fixture(scope="module")
def expected(lineitem: data.Lineitem) -> pd.DataFrame:
    return _frame(dd.read_parquet(lineitem.parquet, columns=COLUMNS))


def test_read_parquet_with_a_filesystem(
    lineitem: data.Lineitem, expected: pd.DataFrame, options: dict[str, object]
) -> None:
    lazy = dd.read_parquet(lineitem.parquet, columns=COLUMNS, filesystem=_over_files(options))
    assert lazy.npartitions > 1
    assert_frame_equal(_frame(lazy), expected)


def test_read_parquet_with_an_arrow_filesystem(
    lineitem: data.Lineitem, expected: pd.DataFrame, mode: str
) -> None:
    arrow = PyFileSystem(FSSpecHandler(_over_files({"scheduler": mode})))
    lazy = dd.read_parquet(lineitem.parquet, columns=COLUMNS, filesystem=arrow)
    assert_frame_equal(_frame(lazy), expected)


def test_what_is_wrapped_is_named_by_itself_and_not_by_its_place(tmp_path: Path) -> None:
    """In memory: another filesystem may be there by then."""
    for name in "xy":
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("file", name)

    def token(name: str, **options: Any) -> str:
        fs = fsspec.filesystem("zip", fo=str(tmp_path / f"{name}.zip"))
        wrapped.append(headrace.wrap(fs, **options))
        found: str = dask.base.tokenize(wrapped[-1])
        return found

    wrapped: list[Any] = []  # all of them are there at once
    assert token("x") == token("x")
    assert len({token("x"), token("y"), token("x", priority=1), token("x", scheduler="lite")}) == 4
    named = headrace.HeadraceFileSystem(target_protocol="file")
    assert dask.base.tokenize(named) == dask.base.tokenize(
        headrace.HeadraceFileSystem(target_protocol="file")
    )


def test_read_parquet_url(lineitem: data.Lineitem, expected: pd.DataFrame, environment_mode: str) -> None:
    lazy = dd.read_parquet(f"headrace::file://{lineitem.parquet}", columns=COLUMNS)
    assert_frame_equal(_frame(lazy), expected, obj=environment_mode)


def test_read_parquet_with_a_filter(lineitem: data.Lineitem, mode: str) -> None:
    rows = [("l_shipmode", "==", "RAIL")]
    fs = _over_files({"scheduler": mode})
    got = dd.read_parquet(lineitem.parquet, columns=COLUMNS, filters=rows, filesystem=fs)
    plain = dd.read_parquet(lineitem.parquet, columns=COLUMNS, filters=rows)
    assert_frame_equal(_frame(got), _frame(plain))


def test_read_parquet_on_s3(
    s3_lineitem: data.Lineitem, s3_server: dict[str, object], mode: str, cloud_engine: str
) -> None:
    fs = _over_s3(mode, s3_server)
    got = dd.read_parquet(s3_lineitem.parquet, columns=COLUMNS, filesystem=fs)
    plain = dd.read_parquet(f"s3://{s3_lineitem.parquet}", storage_options=s3_server)[COLUMNS]
    assert_frame_equal(_frame(got), _frame(plain))


def test_read_csv(lineitem: data.Lineitem, environment_mode: str) -> None:
    path = f"{lineitem.csv}/part.csv"
    lazy = dd.read_csv(f"headrace::file://{path}", blocksize=1_000_000)
    assert lazy.npartitions > 1
    assert_frame_equal(_frame(lazy), _frame(dd.read_csv(path)), obj=environment_mode)


def test_read_csv_on_s3(
    s3_lineitem: data.Lineitem, s3_server: dict[str, object], mode: str, cloud_engine: str
) -> None:
    path = f"{s3_lineitem.csv}/part.csv"
    chained = {"headrace": {"scheduler": mode}, "s3": s3_server}
    lazy = dd.read_csv(f"headrace::s3://{path}", blocksize=100_000, storage_options=chained)
    plain = dd.read_csv(f"s3://{path}", storage_options=s3_server)
    assert_frame_equal(_frame(lazy), _frame(plain))


def _read_bytes(url: str, *, blocksize: int = 1_000_000, **options: Any) -> tuple[bytes, list[bytes]]:
    sample, blocks = dask.bytes.read_bytes(
        url, delimiter=b"\n", blocksize=blocksize, sample=10_000, **options
    )
    with dask.config.set(scheduler="threads"):
        return sample, list(dask.compute(*(block for file in blocks for block in file)))


def test_read_bytes(lineitem: data.Lineitem, environment_mode: str) -> None:
    path = f"{lineitem.csv}/part.csv"
    got = _read_bytes(f"headrace::file://{path}")
    assert got == _read_bytes(f"file://{path}"), environment_mode
    with open(path, "rb") as file:  # noqa: PTH123
        assert b"".join(got[1]) == file.read()


def test_read_bytes_on_s3(
    s3_lineitem: data.Lineitem, s3_server: dict[str, object], mode: str, cloud_engine: str
) -> None:
    path = f"{s3_lineitem.csv}/part.csv"
    got = _read_bytes(f"headrace::s3://{path}", blocksize=100_000, headrace={"scheduler": mode}, s3=s3_server)
    assert len(got[1]) > 1
    assert got == _read_bytes(f"s3://{path}", blocksize=100_000, **s3_server)
    assert b"".join(got[1]) == fsspec.filesystem("s3", **s3_server).cat_file(path)


def test_read_bytes_of_many_files(lineitem: data.Lineitem, environment_mode: str) -> None:
    sample, blocks = dask.bytes.read_bytes(
        f"headrace::file://{lineitem.parquet}/*.parquet", blocksize=None, sample=False
    )
    assert sample is False
    assert len(blocks) == data.FILES, environment_mode
    got = dask.compute(*(block for file in blocks for block in file), scheduler="threads")
    assert list(got) == [fsspec.filesystem("file").cat_file(path) for path in lineitem.files]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_distributed(cluster: Client, lineitem: data.Lineitem, expected: pd.DataFrame, mode: str) -> None:
    fs = _over_files({"scheduler": mode})
    lazy = dd.read_parquet(lineitem.parquet, columns=COLUMNS, filesystem=fs)
    assert_frame_equal(cluster.compute(lazy, sync=True).reset_index(drop=True), expected)


def test_the_mode_arrives_at_the_workers(cluster: Client, lineitem: data.Lineitem, mode: str) -> None:
    path = lineitem.files[0]

    def read_and_count(fs: Any) -> tuple[int, int]:  # local, so that it travels by value
        before = fs.stats().ops_completed
        got = fs.cat_file(path, start=0, end=100)
        return fs.stats().ops_completed - before, len(got)

    fs = _over_files({"scheduler": mode})
    seen = cluster.submit(read_and_count, fs, pure=False).result()
    assert seen == ((0, 100) if mode == "off" else (1, 100))


@pytest.mark.parametrize(
    ("first", "base"),
    [
        (-10, -10),
        (-0.5, -1),
        (0.5, 0),
        (math.inf, 1 << 31),
        (-math.inf, -(1 << 31)),
        (math.nan, 0),
    ],
)
def test_any_priority_of_dasks_is_one_of_ours(first: float, base: int) -> None:
    """A task must not fail of its priority."""
    from headrace.integrations.dask import _base_of

    assert _base_of(first) == base
