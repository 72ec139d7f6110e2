"""The layout of Parquet files, by their footers, against what Arrow itself asks for."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from headrace.parquet import FooterFinder, ParquetLayout

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["a", "b", "c", "d"]
GROUPS = 5


def table_bytes(**options: Any) -> bytes:
    rng = np.random.default_rng(3)
    # Columns longer than the gap that Arrow reads over, 8 KiB.
    table = pa.table({name: rng.integers(0, 1 << 40, 20_000) for name in NAMES})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=4_000, **options)
    return sink.getvalue()


def layout_of(data: bytes) -> ParquetLayout:
    return ParquetLayout(np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"compression": "NONE"}])
def test_every_run_of_columns_of_every_group_is_found_where_it_lies(options: dict[str, Any]) -> None:
    layout = layout_of(table_bytes(**options))
    assert layout.groups == GROUPS
    seen = set()
    for first in range(len(NAMES)):
        for last in range(first, len(NAMES)):
            start, end = _bounds(layout, 0, first, last)
            located = layout.locate(start, end)
            assert located is not None
            group, columns = located
            assert group == 0
            for number in range(GROUPS):
                span = layout.span(number, columns)
                assert span == _bounds(layout, number, first, last)
                assert layout.locate(*span) == (number, columns)
                seen.add(span)
    assert len(seen) == GROUPS * 10


def _bounds(layout: ParquetLayout, group: int, first: int, last: int) -> tuple[int, int]:
    found = layout._metadata.row_group(group)
    one, other = found.column(first), found.column(last)
    starts = [at for at in (one.dictionary_page_offset, one.data_page_offset) if at]
    ends = [at for at in (other.dictionary_page_offset, other.data_page_offset) if at]
    return min(starts), min(ends) + other.total_compressed_size


class Recorder(LocalFileSystem):
    """Notes what is read; not named as Arrow's own, which would be used instead."""

    protocol = "recorder"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super().open(path, mode, **kwargs)
        reads = self.reads

        class Reading(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def tell(self) -> int:
                return int(file.tell())

            def seek(self, *args: Any) -> int:
                return int(file.seek(*args))

            def read(self, n: int = -1) -> bytes:
                start = file.tell()
                data: bytes = file.read(n)
                reads.append((start, start + len(data)))
                return data

        return Reading()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(["b"], GROUPS), (["a", "c"], 2 * GROUPS), (["b", "c"], GROUPS), (["a", "d"], GROUPS + 1)],
)
def test_what_arrow_reads_of_a_projection_are_streams(
    tmp_path: Path, columns: list[str], expected: int
) -> None:
    """The last and the first column lie side by side, in two row groups: Arrow reads them as one range."""
    path = tmp_path / "table.parquet"
    path.write_bytes(table_bytes())
    recorder = Recorder()
    fs = PyFileSystem(FSSpecHandler(recorder))
    ds.dataset(str(path), filesystem=fs).to_table(columns=columns)
    size = path.stat().st_size
    reads = sorted(read for read in set(recorder.reads) if read[1] != size)
    assert len(reads) == expected
    layout = layout_of(path.read_bytes())
    located = [layout.locate(*read) for read in reads]
    assert None not in located
    following = {layout.span(found[0] + 1, found[1]) for found in located if found is not None} - {None}
    assert following <= set(reads) | {_bounds(layout, group, 0, 0) for group in range(GROUPS)}


def test_other_ranges_are_not_found() -> None:
    data = table_bytes()
    layout = layout_of(data)
    start, end = _bounds(layout, 1, 1, 2)
    wrong = [
        (start + 1, end), (start, end - 1), (0, 4), (start, start + 1),
        (0, len(data)), (len(data) - 8, len(data)),
        (start, _bounds(layout, 2, 1, 1)[1]), (start, _bounds(layout, 2, 3, 3)[1]),  # a row group, and more
        (start, _bounds(layout, 3, 0, 0)[1]),
    ]  # fmt: skip
    assert [layout.locate(*one) for one in wrong] == [None] * len(wrong)


def test_columns_of_another_table_are_not_found() -> None:
    layout = layout_of(table_bytes())
    located = layout.locate(*_bounds(layout, 0, 1, 2))
    assert located is not None
    _, columns = located
    assert layout.span(GROUPS, columns) is None
    assert layout.span(0, columns._replace(last=99)) is None
    assert layout.span(0, columns._replace(first_name="x")) is None


def test_a_table_without_columns_or_rows_has_no_streams() -> None:
    for table in (pa.table({}), pa.table({"a": pa.array([], pa.int64())})):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        layout = layout_of(sink.getvalue())
        assert layout.locate(4, 10) is None


def array(data: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8)


def finder_and_data(footer_bytes: int) -> tuple[FooterFinder, bytes]:
    data = bytes(range(250)) * 40 + bytes(footer_bytes) + footer_bytes.to_bytes(4, "little") + b"PAR1"
    return FooterFinder(len(data)), data


def test_a_footer_is_found_in_the_end_of_a_file() -> None:
    finder, data = finder_and_data(100)
    assert finder.look(0, array(data[:500])) is None
    tail = finder.look(len(data) - 300, array(data[-300:]))
    assert tail is not None
    assert tail.tobytes() == data[-300:]
    assert finder.look(len(data) - 300, array(data[-300:])) is None, "once is enough"


def test_a_longer_footer_is_found_in_two_reads() -> None:
    finder, data = finder_and_data(1000)
    assert finder.look(len(data) - 300, array(data[-300:])) is None
    assert finder.look(len(data) - 1000, array(data[-1000:-8])) is None, "not all of it"
    tail = finder.look(len(data) - 1008, array(data[-1008:-8]))
    assert tail is not None
    assert tail.tobytes() == data[-1008:]


@pytest.mark.parametrize("ending", [b"", b"PAR1", b"\0\0\0\0PARE", b"\0\0\0\0par1", b"\xff\xff\xff\xffPAR1"])
def test_no_footer_is_found_in_what_has_none(ending: bytes) -> None:
    data = bytes(1000) + ending
    finder = FooterFinder(len(data))
    assert finder.look(900, array(data[900:])) is None
    assert finder.look(0, array(data)) is None


def test_a_broken_footer_is_an_error_of_arrows() -> None:
    with pytest.raises((pa.ArrowException, OSError)):
        ParquetLayout(array(b"no footer at all" * 10))
