"""The main job of the command line: read a dataset through headrace and count what was read.

1. `wrap_url` finds the filesystem of the URL, and puts headrace over it.
2. The files are located: one file, a glob (of folders all that is in them), or a folder without what Arrow
   ignores too (names starting with ``_`` or ``.``). Their suffix says the format, unless the caller did.
3. A `pyarrow.dataset` scanner yields record batches, which are counted and dropped: what is
   measured is reading and decoding.

Progress is told in bytes of files, because their sizes are known before the first read: a file
counts for the share of its rows that has come out.

Threading: `scan` runs on the caller's thread, Arrow reads on its own. Nothing is printed here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from fsspec.implementations.local import LocalFileSystem

from headrace._binding import bind_filter
from headrace.filesystem import HeadraceFileSystem, wrap_url

if TYPE_CHECKING:
    from headrace._filter import Node

_SUFFIXES = {
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
    ".orc": "orc",
}
_SEEN_BY_ARROW = (".brotli", ".bz2", ".gz", ".gzip", ".lz4", ".zstd")
_COMPRESSED = frozenset({*_SEEN_BY_ARROW, ".br", ".snappy", ".xz", ".z", ".zip", ".zst"})
_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

Progress = Callable[[int, int, int], None]
"""Called with (bytes of files done, bytes of files in all, rows so far)."""

_Listing = dict[str, dict[str, Any]]
"""What is known of files and folders, by name."""


class ScanRequestError(ValueError):
    """What was asked does not fit the dataset: a column, a filter, a format."""


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What to scan.

    Attributes
    ----------
    url
        A path or any URL that fsspec understands, with or without ``headrace::`` in front; a file,
        a folder or a glob.
    columns
        Names to read; None: all.
    where
        Keep the rows for which this holds, as `parse_filter` returned it; None: all.
    file_format
        ``parquet``, ``csv``, ``ipc`` or ``orc``; None: by the suffix of the files.
    mode
        The ``scheduler`` option; None: what the environment says.
    batch_rows, limit_rows
        The most rows in a batch; stop after so many rows. None: Arrow's default; no limit.
    storage_options
        For the filesystem of the URL, and for headrace where they have the names of its own.
    """

    url: str
    columns: list[str] | None = None
    where: Node | None = None
    file_format: str | None = None
    mode: str | None = None
    batch_rows: int | None = None
    limit_rows: int | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a scan did: counts of this scan alone, sizes in bytes, time in seconds.

    Under mode ``off`` nothing is scheduled, and so nothing counted but rows, batches and files.
    """

    mode: str
    file_format: str
    files: int
    file_bytes: int
    rows: int
    batches: int
    ops: int
    requests: int
    bytes_read: int
    bytes_delivered: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Files:
    """What is scanned; folders below `root` name the partition, without one all of them do."""

    root: str | None
    paths: list[str]
    sizes_bytes: list[int]


def scan(request: ScanRequest, on_progress: Progress | None = None) -> ScanReport:
    """Read a dataset and count what came.

    Parameters
    ----------
    request
        What to read.
    on_progress
        Called on this thread after every batch.

    Returns
    -------
    ScanReport

    Raises
    ------
    ScanRequestError
        The dataset has no such column, has no one known format, or is CSV whose compression Arrow would not
        see; or the filter does not fit it, which of some types only the reading shows.
    OSError
        And whatever else the filesystem or Arrow raises.
    """
    started = time.perf_counter()
    filesystem, path = _open_filesystem(request)
    before = filesystem.stats()
    files = _locate(filesystem, path, request.file_format)
    file_format = request.file_format or _common_format(files.paths)
    if file_format == "csv":
        _check_compression(files.paths)
    scanner = _scanner(_dataset(filesystem, files, file_format), request)
    with _told_of_types(has_filter=request.where is not None):
        rows, batches = _drain(scanner, files, request.limit_rows, on_progress)
    after = filesystem.stats()
    return ScanReport(
        mode=filesystem.mode,
        file_format=file_format,
        files=len(files.paths),
        file_bytes=sum(files.sizes_bytes),
        rows=rows,
        batches=batches,
        ops=after.ops_completed - before.ops_completed,
        requests=after.requests_completed - before.requests_completed,
        bytes_read=after.bytes_read - before.bytes_read,
        bytes_delivered=after.bytes_delivered - before.bytes_delivered,
        seconds=time.perf_counter() - started,
    )


def _open_filesystem(request: ScanRequest) -> tuple[HeadraceFileSystem, str]:
    mode = {} if request.mode is None else {"scheduler": request.mode}
    return wrap_url(request.url, {**request.storage_options, **mode})


def _locate(filesystem: HeadraceFileSystem, path: str, file_format: str | None) -> _Files:
    if fsspec.core.has_magic(path) and not filesystem.exists(path):
        root = path[: path.index(next(char for char in path if char in "*?["))].rpartition("/")[0]
        found, base = _matches(filesystem, path, root), None
    elif (info := filesystem.info(path))["type"] == "directory":
        found, root, base = filesystem.find(path, detail=True), path, path
    else:
        return _Files(None, [path], [info["size"] or 0])
    shown = _shown(filesystem, found, root)
    # In object stores an empty object of a folder's name marks it.
    files = {name: info for name, info in shown.items() if info["type"] == "file" and name[-1:] != "/"}
    sizes = {name: info["size"] or 0 for name, info in files.items()}
    names = _of_format(list(sizes), file_format)
    if not names:
        raise FileNotFoundError(f"no data files at {path}")
    return _Files(base, names, [sizes[name] for name in names])


def _matches(filesystem: HeadraceFileSystem, pattern: str, root: str) -> _Listing:
    """Return what a glob matches, with the files of the folders among it."""
    found = _shown(filesystem, _globbed(filesystem, pattern), root)
    folders = {f"{name.rstrip('/')}/": name for name, info in found.items() if info["type"] == "directory"}
    above = None
    for folder in sorted(folders):  # what is in a folder comes right after it
        if above is None or not folder.startswith(above):  # else `above` brought all of it
            above = folder
            found |= filesystem.find(folders[folder], detail=True)
    return found


def _globbed(filesystem: HeadraceFileSystem, pattern: str) -> _Listing:
    found: _Listing
    if isinstance(filesystem.target, LocalFileSystem):
        # By our own `find`, which follows links: the target's looks into no linked folder.
        found = fsspec.AbstractFileSystem.glob(filesystem, pattern, detail=True)
    else:
        found = filesystem.glob(pattern, detail=True)
    return found


def _shown(filesystem: HeadraceFileSystem, found: _Listing, root: str) -> _Listing:
    """Return what is not hidden; of links (a listing says no more) where they lead."""
    shown = {name: info for name, info in found.items() if not _is_hidden(name, root)}
    return {name: _told(filesystem, name, info) for name, info in shown.items()}


def _told(filesystem: HeadraceFileSystem, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a file; of a link where it leads, if anywhere."""
    if info["type"] != "other":
        return info
    try:
        return filesystem.info(name)
    except FileNotFoundError:
        return info


def _is_hidden(path: str, root: str) -> bool:
    parts = path.removeprefix(root).strip("/").split("/")
    return any(part.startswith(("_", ".")) for part in parts)


def _of_format(paths: list[str], file_format: str | None) -> list[str]:
    """Return the paths whose suffix says `file_format`, or all if no suffix does."""
    fitting = [path for path in paths if _format_of(path) == file_format]
    return sorted(fitting if fitting and file_format else paths)


def _format_of(path: str) -> str | None:
    suffixes = _suffixes(path)
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _suffixes(path: str) -> list[str]:
    """Return the suffixes of a file's name, in lower case; of a URL without its query."""
    name = urlsplit(path).path if path.startswith(("http://", "https://")) else path
    return [suffix.lower() for suffix in PurePosixPath(name).suffixes]


def _check_compression(paths: list[str]) -> None:
    """Refuse compressed CSV that Arrow would take for text: it looks how a path ends, and in lower case."""
    for path in paths:
        if _COMPRESSED.intersection(_suffixes(path)[-1:]) and not path.endswith(_SEEN_BY_ARROW):
            ends = ", ".join(_SEEN_BY_ARROW)
            raise ScanRequestError(
                f"{path!r} is compressed, which Arrow sees only of names that end in {ends}"
            )


def _common_format(paths: list[str]) -> str:
    formats = {path: _format_of(path) for path in paths}
    known = sorted({name for name in formats.values() if name is not None})
    odd = next((path for path, name in formats.items() if name is None), None)
    if odd is not None:
        what = f"the name of {odd!r} tells no format (known are {', '.join(_SUFFIXES)})"
    elif len(known) == 1:
        return known[0]
    else:
        what = f"the files are of several formats, {', '.join(known)}"
    raise ScanRequestError(f"{what}: name one with --format")


def _dataset(filesystem: HeadraceFileSystem, files: _Files, file_format: str) -> ds.FileSystemDataset:
    return ds.dataset(
        files.paths,
        filesystem=filesystem,
        format=file_format,
        partitioning=ds.partitioning(flavor="hive"),
        partition_base_dir=files.root,
    )


def _scanner(dataset: ds.FileSystemDataset, request: ScanRequest) -> ds.Scanner:
    for name in request.columns or ():
        if name not in dataset.schema.names:
            there = ", ".join(dataset.schema.names)
            raise ScanRequestError(f"no column {name!r}; there are {there}")
    batch_rows = {} if request.batch_rows is None else {"batch_size": request.batch_rows}
    if request.where is None:
        return dataset.scanner(columns=request.columns, **batch_rows)
    try:
        # Bound to the views: statistics are of views, too, and only what is cast is not compared with them.
        where = bind_filter(request.where, dataset.schema)
        return _without_views(dataset).scanner(columns=request.columns, filter=where, **batch_rows)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ScanRequestError(f"the filter does not fit the data: {error}") from error


def _without_views(dataset: ds.FileSystemDataset) -> ds.FileSystemDataset:
    """Return the dataset with plain strings for views, of which Arrow can drop no rows."""
    schema = pa.schema([_plain(field) for field in dataset.schema])
    if schema == dataset.schema:
        return dataset
    return ds.FileSystemDataset(list(dataset.get_fragments()), schema, dataset.format, dataset.filesystem)


def _plain(field: pa.Field) -> pa.Field:
    type_ = field.type
    if pa.types.is_struct(type_):
        return field.with_type(pa.struct([_plain(inner) for inner in type_]))
    if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        return field.with_type(pa.list_(_plain(type_.value_field), getattr(type_, "list_size", -1)))
    if pa.types.is_large_list(type_):
        return field.with_type(pa.large_list(_plain(type_.value_field)))
    if pa.types.is_map(type_):
        key, item = _plain(type_.key_field), _plain(type_.item_field)
        return field.with_type(pa.map_(key, item, keys_sorted=type_.keys_sorted))
    return field.with_type(_PLAIN.get(type_, type_))


@contextmanager
def _told_of_types(*, has_filter: bool) -> Iterator[None]:
    """Tell what only reading shows of a type: Arrow compares with a file's statistics, if it has them."""
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        if has_filter and "has no kernel" in str(error):
            raise ScanRequestError(f"Arrow cannot filter by a column of this type here: {error}") from error
        raise


def _drain(
    scanner: ds.Scanner, files: _Files, limit_rows: int | None, on_progress: Progress | None
) -> tuple[int, int]:
    meter = _Meter(files, on_progress)
    batches: Iterator[ds.TaggedRecordBatch] = scanner.scan_batches()
    with closing(_taken(batches, limit_rows)) as taken:
        for fragment, rows in taken:
            meter.add(fragment, rows)
    meter.finish()
    return meter.rows, meter.batches


def _taken(
    batches: Iterator[ds.TaggedRecordBatch], limit_rows: int | None
) -> Generator[tuple[ds.Fragment, int]]:
    """Yield each batch's fragment and rows, until `limit_rows` are there."""
    left = limit_rows
    while left is None or left > 0:
        tagged = next(batches, None)
        if tagged is None:
            return
        rows = tagged.record_batch.num_rows
        if left is not None:
            rows = min(rows, left)
            left -= rows
        yield tagged.fragment, rows


class _Meter:
    """Turns the batches of a scan into progress, in bytes of files."""

    def __init__(self, files: _Files, on_progress: Progress | None) -> None:
        self.rows = 0
        self.batches = 0
        self._on_progress = on_progress
        self._index = {path: index for index, path in enumerate(files.paths)}
        self._ends_bytes = np.cumsum([0, *files.sizes_bytes]).tolist()
        self._file = 0
        self._rows_of_file = 0
        self._expected_rows = 0

    def add(self, fragment: ds.Fragment, rows: int) -> None:
        self.rows += rows
        self.batches += 1
        if self._on_progress is None:
            return
        index = self._index.get(fragment.path, self._file)
        if self.batches == 1 or index != self._file:
            self._file, self._rows_of_file = index, 0
            self._expected_rows = _rows_of(fragment)
        self._rows_of_file += rows
        begin, end = self._ends_bytes[self._file : self._file + 2]
        share = self._rows_of_file / self._expected_rows if self._expected_rows else 0.0
        done = begin + int((end - begin) * min(share, 1.0))
        self._on_progress(done, self._ends_bytes[-1], self.rows)

    def finish(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._ends_bytes[-1], self._ends_bytes[-1], self.rows)


def _rows_of(fragment: ds.Fragment) -> int:
    """Return the rows of a Parquet file that is being scanned (its footer was read), else 0."""
    if not isinstance(fragment, ds.ParquetFileFragment):
        return 0
    rows: int = fragment.metadata.num_rows
    return rows
