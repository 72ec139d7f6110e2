"""pandas reads URLs and paths through headrace: the same frames as from the plain filesystem."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fsspec
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import headrace

if TYPE_CHECKING:
    import data

COLUMNS = ["l_orderkey", "l_shipdate", "l_comment"]


def test_read_parquet_url(lineitem: data.Lineitem, environment_mode: str) -> None:
    path = lineitem.files[0]
    got = pd.read_parquet(f"headrace::file://{path}", columns=COLUMNS)
    assert_frame_equal(got, pd.read_parquet(path, columns=COLUMNS), obj=environment_mode)


def test_read_parquet_directory_url(lineitem: data.Lineitem, environment_mode: str) -> None:
    got = pd.read_parquet(f"headrace::file://{lineitem.parquet}", columns=COLUMNS)
    expected = pd.read_parquet(lineitem.parquet, columns=COLUMNS)
    assert_frame_equal(got, expected, obj=environment_mode)


def test_read_parquet_filesystem(lineitem: data.Lineitem, options: dict[str, object]) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    got = pd.read_parquet(lineitem.files[1], columns=COLUMNS, filesystem=fs)
    assert_frame_equal(got, pd.read_parquet(lineitem.files[1], columns=COLUMNS))


@pytest.mark.parametrize("nrows", [None, 10])
def test_read_csv_url(lineitem: data.Lineitem, environment_mode: str, nrows: int | None) -> None:
    path = f"{lineitem.csv}/part.csv"
    got = pd.read_csv(f"headrace::file://{path}", nrows=nrows)
    assert_frame_equal(got, pd.read_csv(path, nrows=nrows), obj=environment_mode)


def test_read_parquet_url_on_s3(
    s3_lineitem: data.Lineitem, s3_server: dict[str, object], mode: str, cloud_engine: str
) -> None:
    path = s3_lineitem.files[0]
    chained = {"headrace": {"scheduler": mode}, "s3": s3_server}
    got = pd.read_parquet(f"headrace::s3://{path}", storage_options=chained)
    with fsspec.open(f"s3://{path}", **s3_server) as file:
        assert_frame_equal(got, pd.read_parquet(file))


def test_flat_storage_options_reach_s3(
    s3_lineitem: data.Lineitem, s3_server: dict[str, object], environment_mode: str, cloud_engine: str
) -> None:
    path = s3_lineitem.files[0]
    got = pd.read_parquet(f"headrace::s3://{path}", storage_options=s3_server)
    with fsspec.open(f"s3://{path}", **s3_server) as file:
        assert_frame_equal(got, pd.read_parquet(file), obj=environment_mode)


def test_write_and_read_back(
    small_lineitem: data.Lineitem, tmp_path_factory: pytest.TempPathFactory, environment_mode: str
) -> None:
    target = tmp_path_factory.mktemp("pandas") / "copy.parquet"
    frame = pd.read_parquet(small_lineitem.files[0], columns=COLUMNS)
    frame.to_parquet(f"headrace::file://{target}")
    assert_frame_equal(pd.read_parquet(target), frame, obj=environment_mode)
