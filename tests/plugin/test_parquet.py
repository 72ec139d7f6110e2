"""The layout of Parquet files, by their footers, against what Arrow itself asks for."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from pyarrow.parquet import encryption

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
    data = table_bytes(**options)
    layout = layout_of(data)
    assert layout.groups == GROUPS
    seen = set()
    for first in range(len(NAMES)):
        for last in range(first, len(NAMES)):
            start, end = _bounds(data, 0, first, last)
            located = layout.locate(start, end)
            assert located is not None
            group, columns = located
            assert group == 0
            for number in range(GROUPS):
                span = layout.span(number, columns)
                assert span == _bounds(data, number, first, last)
                assert layout.locate(*span) == (number, columns)
                seen.add(span)
    assert len(seen) == GROUPS * 10


def _bounds(data: bytes, group: int, first: int, last: int) -> tuple[int, int]:
    """As pyarrow has it, which may be asked of a file that is sound."""
    found = pq.read_metadata(pa.BufferReader(data)).row_group(group)
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
    data = path.read_bytes()
    layout = layout_of(data)
    located = [layout.locate(*read) for read in reads]
    assert None not in located
    following = {layout.span(found[0] + 1, found[1]) for found in located if found is not None} - {None}
    assert following <= set(reads) | {_bounds(data, group, 0, 0) for group in range(GROUPS)}


def test_other_ranges_are_not_found() -> None:
    data = table_bytes()
    layout = layout_of(data)
    start, end = _bounds(data, 1, 1, 2)
    wrong = [
        (start + 1, end), (start, end - 1), (0, 4), (start, start + 1),
        (0, len(data)), (len(data) - 8, len(data)),
        (start, _bounds(data, 2, 1, 1)[1]), (start, _bounds(data, 2, 3, 3)[1]),  # a row group, and more
        (start, _bounds(data, 3, 0, 0)[1]),
    ]  # fmt: skip
    assert [layout.locate(*one) for one in wrong] == [None] * len(wrong)


def test_columns_of_another_table_are_not_found() -> None:
    data = table_bytes()
    layout = layout_of(data)
    located = layout.locate(*_bounds(data, 0, 1, 2))
    assert located is not None
    _, columns = located
    assert layout.span(GROUPS, columns) is None
    assert layout.span(0, columns._replace(last=99)) is None
    assert layout.span(0, columns._replace(first_name=b"x")) is None


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


def test_what_is_no_footer_is_an_error() -> None:
    for tail in (b"no footer at all" * 10, b"\xff" * 100 + b"d\0\0\0PAR1", b""):
        with pytest.raises(ValueError, match=r"footer|list|type|chunk|number"):
            ParquetLayout(array(tail))


def test_a_long_footer_is_not_looked_at() -> None:
    """It takes Python too long."""
    data = bytes(200_000) + (150_000).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ValueError, match="a long one"):
        ParquetLayout(array(data))


def test_damaged_footers_are_errors_at_the_most() -> None:
    """pyarrow ends the process where some of these are looked at."""
    data = bytearray(table_bytes())
    nbytes = int.from_bytes(data[-8:-4], "little")
    rng = np.random.default_rng(21)
    refused = 0
    for _ in range(3_000):
        damaged = bytearray(data)
        for at in rng.integers(len(data) - 8 - nbytes, len(data) - 8, 3).tolist():
            damaged[at] = int(rng.integers(256))
        try:
            layout = ParquetLayout(array(bytes(damaged)))
        except ValueError:
            refused += 1
            continue
        located = layout.locate(*_bounds(bytes(data), 0, 0, 0))
        assert located is None or layout.span(1, located[1]) is None or layout.groups > 1
    assert 100 < refused < 3_000


def test_a_footer_that_ends_early_is_an_error() -> None:
    data = table_bytes()
    nbytes = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - nbytes : -8]
    for length in range(1, nbytes, 7):
        with pytest.raises(ValueError):
            ParquetLayout(array(footer[:length] + length.to_bytes(4, "little") + b"PAR1"))


class Kms(encryption.KmsClient):
    """Keeps keys by writing them down."""

    def __init__(self, _configuration: Any) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(master_key_identifier.encode() + key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)[len(master_key_identifier) :]


def test_encrypted_columns_have_no_layout() -> None:
    """Their file may be read by who has the keys, or copied as it is; pyarrow ends a process that asks."""
    factory = encryption.CryptoFactory(Kms)
    given = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"columns": ["a", "b"]}, plaintext_footer=True
    )
    keys = factory.file_encryption_properties(encryption.KmsConnectionConfig(), given)
    with pytest.raises(ValueError, match=r"encrypted"):
        layout_of(table_bytes(encryption_properties=keys))


def test_names_need_not_be_text() -> None:
    data = table_bytes().replace(b"\x01a", b"\x01\xff")
    layout = layout_of(data)
    located = layout.locate(*_bounds(table_bytes(), 0, 0, 0))
    assert located is not None
    assert located[1].first_name == b"\xff"
