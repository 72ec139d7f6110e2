"""`HeadraceFile`: behaves as the wrapped filesystem's own file, in every mode.

Reads, positions, lines, text, buffers without a copy, threads that share one file, and what goes
wrong: closed files, directories, missing files, refused permission, files that shrink or vanish
while they are read.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import random
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import recording
from targets import outcome

import headrace
from headrace.backends import _linux

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = [f"line {number} {'x' * (number % 97)}\n" for number in range(5_000)]
TEXT = "".join(LINES)
CONTENT = TEXT.encode()
SIZE = len(CONTENT)


@pytest.fixture(params=["file", "memory", "recording", "arecording"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(protocol: str, tmp_path: Path) -> str:
    if protocol == "memory":
        fsspec.filesystem("memory").pipe_file("/test-file/lines.txt", CONTENT)
        return "/test-file/lines.txt"
    name = tmp_path / "lines.txt"
    name.write_bytes(CONTENT)
    return str(name)


@pytest.fixture
def scheduled(protocol: str, options: dict[str, object]) -> headrace.HeadraceFileSystem:
    """As `fs`, in the modes where a file is headrace's own: under off it is the target's."""
    if options["scheduler"] == "off":
        del options["scheduler"]  # auto takes its place
    return _wrapped(protocol, options)


@pytest.fixture
def fs(protocol: str, options: dict[str, object]) -> headrace.HeadraceFileSystem:
    return _wrapped(protocol, options)


def _wrapped(protocol: str, options: dict[str, object]) -> headrace.HeadraceFileSystem:
    log = {"log": "file"} if protocol.endswith("recording") else {}
    return headrace.HeadraceFileSystem(target_protocol=protocol, target_options=log, **options)


@pytest.fixture
def disk(options: dict[str, object]) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="file", **options)


def test_read(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file:
        assert file.read(10) == CONTENT[:10]
        assert file.read(0) == b""
        assert file.tell() == 10
        assert file.read(100_000) == CONTENT[10:100_010]
        assert file.read() == CONTENT[100_010:]
        assert file.read() == file.read(5) == b""
        assert file.tell() == SIZE


def test_read_to_the_end(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file:
        assert file.read(-1) == CONTENT
    assert fs.read_bytes(path) == CONTENT
    assert fs.read_text(path) == TEXT


def test_read_gives_bytes(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file:
        assert type(file.read(5)) is bytes
        assert type(file.readline()) is bytes


def test_seek_and_tell(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file:
        assert file.seek(100) == file.tell() == 100
        assert file.read(5) == CONTENT[100:105]
        assert file.seek(-5, os.SEEK_CUR) == 100
        assert file.seek(-7, os.SEEK_END) == SIZE - 7
        assert file.read() == CONTENT[-7:]
        assert file.seek(SIZE + 10) == SIZE + 10
        assert file.read(5) == b""
        assert file.seek(0) == 0
        assert file.read(3) == CONTENT[:3]


def test_bad_seeks(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file:
        file.seek(10)
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)
        with pytest.raises((ValueError, OSError)):
            file.seek(0, 17)
        assert file.tell() == 10
        assert file.read(5) == CONTENT[10:15]


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_a_seek_before_the_start_is_an_error_of_both_kinds(
    scheduled: Any, path: str, kind: type[Exception]
) -> None:
    """Of files on disk it is the one, of fsspec's others the other."""
    with scheduled.open(path, "rb") as file, pytest.raises(kind, match="before the start") as caught:
        file.seek(-SIZE - 1, os.SEEK_END)
    assert caught.value.errno == errno.EINVAL


def test_what_is_too_short_is_no_archive(disk: Any, tmp_path: Path) -> None:
    """So says zipfile, which looks for the end of one before the start of the file."""
    (tmp_path / "tiny").write_bytes(b"tiny")
    with disk.open(str(tmp_path / "tiny"), "rb") as file:
        assert not zipfile.is_zipfile(file)
        with pytest.raises(zipfile.BadZipFile):
            zipfile.ZipFile(file)


def test_the_file_knows_itself(scheduled: Any, path: str) -> None:
    with scheduled.open(path, "rb") as file:
        assert file.readable() is True
        assert file.seekable() is True
        assert file.writable() is False
        assert file.closed is False
        assert file.size == SIZE
        assert file.mode == "rb"
        with pytest.raises(io.UnsupportedOperation, match=r"fileno: .* open the path itself"):
            file.fileno()
    assert file.closed is True


@pytest.mark.parametrize(
    "make",
    [bytearray, lambda n: np.zeros(n, np.uint8), lambda n: memoryview(bytearray(n))],
    ids=["bytearray", "array", "memoryview"],
)
def test_readinto(fs: Any, path: str, make: Callable[[int], Any]) -> None:
    with fs.open(path, "rb") as file:
        buffer = make(1_000)
        assert file.readinto(buffer) == 1_000
        assert bytes(buffer) == CONTENT[:1_000]
        file.seek(SIZE - 10)
        assert file.readinto(buffer) == 10
        assert bytes(buffer) == CONTENT[-10:] + CONTENT[10:1_000]
        assert file.readinto(buffer) == 0
        assert file.readinto(make(0)) == 0


@pytest.mark.parametrize("start", [0, 7, 200_000, SIZE - 3, SIZE])
def test_peek(scheduled: Any, path: str, start: int) -> None:
    with scheduled.open(path, "rb") as file:
        file.seek(start)
        for length in (0, 2, 10_000):
            peeked = file.peek(length)
            assert CONTENT.startswith(peeked, start)
            assert bool(peeked) == (start < SIZE)
            assert file.tell() == start
        assert file.read(10) == CONTENT[start : start + 10]


def test_readinto_a_buffer_of_wider_items(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file:
        buffer = np.zeros(100, np.int64)
        assert file.readinto(buffer) == 800
        assert buffer.tobytes() == CONTENT[:800]


def test_lines(scheduled: Any, path: str) -> None:
    lines = [line.encode() for line in LINES]
    with scheduled.open(path, "rb") as file:
        assert file.readline() == lines[0]
        assert file.readline() == lines[1]
        assert file.readline(3) == lines[2][:3]
        assert file.readline() == lines[2][3:]
        assert next(file) == lines[3]
        assert list(file) == lines[4:]
        assert file.readline() == b""
        file.seek(0)
        assert file.readlines() == lines


def test_lines_and_reads_mix(fs: Any, path: str) -> None:
    reference = io.BytesIO(CONTENT)
    rng = random.Random(5)
    with fs.open(path, "rb") as file:
        for _ in range(300):
            calls = {
                "readline": (),
                "read": (rng.randrange(3_000),),
                "seek": (rng.randrange(SIZE),),
            }
            name, argument = rng.choice(list(calls.items()))
            assert getattr(file, name)(*argument) == getattr(reference, name)(*argument)
            assert file.tell() == reference.tell()


@pytest.mark.parametrize("blocks", [None, 7])
def test_read_until(scheduled: Any, path: str, blocks: int | None) -> None:
    with scheduled.open(path, "rb") as file:
        line = CONTENT[: CONTENT.index(b"\n") + 1]
        assert file.readuntil(b"\n", blocks) == line
        assert file.tell() == len(line)
        file.seek(SIZE - 3)
        assert file.readuntil(b"\0", blocks) == CONTENT[-3:]


def test_text(fs: Any, path: str) -> None:
    with fs.open(path, "r") as file:
        assert file.readline() == LINES[0]
        assert file.read() == TEXT[len(LINES[0]) :]
    with fs.open(path, "rt", encoding="ascii", newline="") as file:
        assert list(file) == LINES


def test_text_in_another_encoding(tmp_path: Path, disk: Any) -> None:
    name = tmp_path / "latin.txt"
    name.write_bytes("Wörter\r\nfür\r\nMühlen".encode("latin-1"))
    with disk.open(str(name), "r", encoding="latin-1") as file:
        assert file.readlines() == ["Wörter\n", "für\n", "Mühlen"]


def test_compression(tmp_path: Path, disk: Any) -> None:
    import gzip

    name = tmp_path / "lines.txt.gz"
    name.write_bytes(gzip.compress(CONTENT))
    with disk.open(str(name), "rb", compression="infer") as file:
        assert file.read() == CONTENT


def test_wrapped_in_a_buffered_reader(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file, io.BufferedReader(file, 1_000) as buffered:
        assert list(buffered) == [line.encode() for line in LINES]


def test_read_buffer(scheduled: Any, path: str) -> None:
    with scheduled.open(path, "rb") as file:
        buffer = file.read_buffer(1_000)
        assert isinstance(buffer, pa.Buffer)
        assert buffer.to_pybytes() == CONTENT[:1_000]
        assert file.tell() == 1_000
        rest = file.read_buffer(10 * SIZE)
        assert rest.to_pybytes() == CONTENT[1_000:]
        assert file.read_buffer(5).size == file.read_buffer(0).size == 0
    assert buffer.to_pybytes() == CONTENT[:1_000], "a buffer outlives its file"


def test_read_buffer_outlives_everything(path: str, protocol: str, scheduled_mode: str) -> None:
    fs = _wrapped(protocol, {"scheduler": scheduled_mode, "skip_instance_cache": True})
    file = fs.open(path, "rb")
    buffers = [file.read_buffer(5_000) for _ in range(10)]
    file.close()
    del file, fs
    gc.collect()
    assert b"".join(buffer.to_pybytes() for buffer in buffers) == CONTENT[:50_000]


def test_pyarrow_reads_it(fs: Any, path: str) -> None:
    with fs.open(path, "rb") as file, pa.PythonFile(file, mode="r") as arrow:
        assert arrow.size() == SIZE
        assert arrow.read_at(100, 50).hex() == CONTENT[50:150].hex()
        arrow.seek(0)
        assert arrow.read_buffer(10).to_pybytes() == CONTENT[:10]


def test_large_reads_are_split_and_right(tmp_path: Path, options: dict[str, object]) -> None:
    content = np.random.default_rng(3).bytes(5_000_001)
    name = tmp_path / "large.bin"
    name.write_bytes(content)
    log = recording.read_log("file-large")
    fs = headrace.HeadraceFileSystem(
        target_protocol="recording",
        target_options={"log": "file-large"},
        max_op_bytes=1_000_000,
        **options,
    )
    log.clear()
    with fs.open(str(name), "rb") as file:
        assert file.read(4_500_000) == content[:4_500_000]
        assert file.read(5_000_000) == content[4_500_000:]
    if options["scheduler"] != "off":
        assert max(record.end - record.start for record in log.records) <= 1_000_000


def test_threads_share_one_file(scheduled: Any, path: str) -> None:
    """Each read is whole: positions move as if the reads came one after another."""
    with scheduled.open(path, "rb") as file, ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda _: file.read(100), range(200)))
    assert all(len(piece) == 100 for piece in pieces)
    expected = [CONTENT[start : start + 100] for start in range(0, 20_000, 100)]
    assert sorted(pieces) == sorted(expected)


def test_threads_with_files_of_their_own(fs: Any, path: str) -> None:
    def read(seed: int) -> bool:
        rng = random.Random(seed)
        with fs.open(path, "rb") as file:
            for _ in range(20):
                start, length = rng.randrange(SIZE), rng.randrange(20_000)
                file.seek(start)
                if file.read(length) != CONTENT[start : start + length]:
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_one_whose_making_was_interrupted_can_be_closed() -> None:
    """By Python's finaliser, which from 3.13 on tells of errors."""
    file = headrace.HeadraceFile.__new__(headrace.HeadraceFile)
    file.close()
    assert file.closed


def test_closed(scheduled: Any, path: str) -> None:
    file = scheduled.open(path, "rb")
    file.close()
    file.close()
    calls: list[Callable[[], Any]] = [
        file.read,
        lambda: file.readinto(bytearray(5)),
        file.readline,
        lambda: file.read_buffer(5),
        file.tell,
        lambda: file.seek(0),
        lambda: next(file),
        file.__enter__,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


def test_the_length_of_an_object_is_known_when_its_file_is_closed(
    tmp_path: Path, scheduled_mode: str
) -> None:
    (tmp_path / "object").write_bytes(CONTENT)
    with _wrapped("arecording", {"scheduler": scheduled_mode}).open(str(tmp_path / "object")) as file:
        pass
    assert file.size == SIZE


def test_it_cannot_write(scheduled: Any, path: str) -> None:
    with scheduled.open(path, "rb") as file:
        for call in (lambda: file.write(b"x"), lambda: file.truncate(0)):
            with pytest.raises((io.UnsupportedOperation, OSError, ValueError)):
                call()
    assert scheduled.cat_file(path) == CONTENT


def test_dropped_files_leave_nothing(disk: Any, tmp_path: Path, no_leaks: Callable[[], Any]) -> None:
    name = tmp_path / "lines.txt"
    name.write_bytes(CONTENT)

    def scan() -> None:
        for _ in range(20):
            file = disk.open(str(name), "rb")
            file.read(1_000)
            del file
        with disk.open(str(name), "rb") as file:
            file.read()

    scan()
    with no_leaks():
        scan()
    assert disk.stats().reserved_bytes == disk.stats().in_flight_ops == 0


# -- what goes wrong --------------------------------------------------------------------------


def _outcome(fs: Any, path: str) -> Any:
    """Open and read one byte: the byte, or the type of the exception."""
    try:
        with fs.open(path, "rb") as file:
            return file.read(1)
    except Exception as error:  # noqa: BLE001  (any of them is an outcome to compare)
        return type(error)


def _plain(protocol: str) -> Any:
    log = {"log": "file"} if protocol.endswith("recording") else {}
    return fsspec.filesystem(protocol, **log)


def test_a_missing_file(fs: Any, protocol: str, path: str) -> None:
    missing = f"{path}.gone"
    assert _outcome(fs, missing) is _outcome(_plain(protocol), missing) is FileNotFoundError
    with pytest.raises(FileNotFoundError, match=r"lines\.txt\.gone"):
        fs.open(missing, "rb").read()


def test_a_directory(fs: Any, protocol: str, path: str) -> None:
    directory = path.rpartition("/")[0]
    expected = _outcome(_plain(protocol), directory)
    assert issubclass(expected, OSError)
    assert _outcome(fs, directory) is expected


def test_a_directory_is_named(disk: Any, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        disk.open(str(tmp_path), "rb").read()


@pytest.fixture
def refusing() -> Any:
    """A log whose filesystem refuses every read."""
    log = recording.read_log("file")

    def refuse(record: recording.ReadRecord) -> None:
        raise PermissionError(13, "Permission denied", record.path)

    log.before_read = refuse
    yield log
    log.before_read = None


def test_permission_denied(refusing: Any, tmp_path: Path, options: dict[str, object]) -> None:
    name = tmp_path / "secret.bin"
    name.write_bytes(CONTENT)
    assert refusing.before_read is not None
    for protocol in ("recording", "arecording"):
        fs = headrace.HeadraceFileSystem(target_protocol=protocol, target_options={"log": "file"}, **options)
        with pytest.raises(PermissionError, match=r"secret\.bin"):
            fs.cat_file(str(name), start=0, end=10)
        with fs.open(str(name), "rb") as file, pytest.raises(PermissionError):
            file.read(10)
        errors = fs.cat_ranges([str(name)] * 2, [0, 20], [10, 30])
        assert [type(error) for error in errors] == [PermissionError, PermissionError]
        assert fs.stats().reserved_bytes == fs.stats().in_flight_ops == 0


def test_a_refused_read_leaves_the_file_usable(tmp_path: Path, options: dict[str, object]) -> None:
    name = tmp_path / "moody.bin"
    name.write_bytes(CONTENT)
    log = recording.read_log("file-moody")
    fs = headrace.HeadraceFileSystem(
        target_protocol="recording", target_options={"log": "file-moody"}, **options
    )

    def refuse(_record: recording.ReadRecord) -> None:
        raise PermissionError(13, "Permission denied", str(name))

    with fs.open(str(name), "rb") as file:
        log.before_read = refuse
        with pytest.raises(PermissionError):
            file.read(10)
        log.before_read = None
        assert file.tell() == 0
        assert file.read(10) == CONTENT[:10]


def test_a_file_that_shrinks(disk: Any, tmp_path: Path) -> None:
    """Bytes that are gone are reported as gone, as the plain filesystem does, never invented."""
    name = tmp_path / "shrinks.txt"
    name.write_bytes(CONTENT)
    with disk.open(str(name), "rb") as file, open(name, "rb", buffering=0) as plain:  # noqa: PTH123
        assert file.read(1_000) == plain.read(1_000)
        os.truncate(name, 200_000)
        file.seek(199_000)
        assert file.read(2_000) == CONTENT[199_000:200_000]
        assert file.read(2_000) == b""
        file.seek(150_000)
        assert file.read(SIZE) == CONTENT[150_000:200_000]
    assert disk.cat_file(str(name)) == CONTENT[:200_000]
    assert disk.cat_ranges([str(name)] * 2, [0, 199_000], [10, SIZE]) == [
        CONTENT[:10],
        CONTENT[199_000:200_000],
    ]
    assert disk.stats().reserved_bytes == disk.stats().in_flight_ops == 0


def test_a_file_that_vanishes(disk: Any, tmp_path: Path) -> None:
    """An open local file stays readable without its name, as POSIX has it; a new read fails."""
    name = tmp_path / "vanishes.txt"
    name.write_bytes(CONTENT)
    with disk.open(str(name), "rb") as file:
        assert file.read(1_000) == CONTENT[:1_000]
        name.unlink()
        file.seek(50_000)
        assert file.read(1_000) == CONTENT[50_000:51_000]
    for call in (disk.cat_file, lambda path: disk.read_ranges(path, [0], [5]).to_pylist()):
        with pytest.raises(FileNotFoundError, match=r"vanishes\.txt"):
            call(str(name))
    assert disk.stats().reserved_bytes == disk.stats().in_flight_ops == 0


def test_a_file_that_is_replaced(disk: Any, tmp_path: Path) -> None:
    name, new = tmp_path / "replaced.txt", tmp_path / "new.txt"
    for turn in range(5):
        new.write_bytes(str(turn).encode() * 5_000)
        new.replace(name)
        assert disk.cat_file(str(name)) == str(turn).encode() * 5_000
        assert disk.read_ranges(str(name), [10], [20]).to_pylist() == [str(turn).encode() * 10]
        with disk.open(str(name), "rb") as file:
            assert file.read(3) == str(turn).encode() * 3


@pytest.mark.parametrize("mode_of_open", ["", "q", "rw", "r+b+"])
def test_a_bad_open_mode(disk: Any, tmp_path: Path, mode_of_open: str) -> None:
    name = tmp_path / "lines.txt"
    name.write_bytes(CONTENT)
    with pytest.raises((ValueError, OSError, NotImplementedError)):
        disk.open(str(name), mode_of_open)
    assert name.read_bytes() == CONTENT


# -- what is no plain file


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="of Linux")  # noqa: PTH110
def test_devices_and_made_up_files_are_the_targets(options: dict[str, object]) -> None:
    """They have no length: 0 is what the system says, and an empty answer would be a wrong one."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    with fs.open("/dev/zero", "rb") as file:
        assert [len(file.read(10)), len(file.read(200_000))] == [10, 200_000]
    assert fs.cat_file("/dev/zero", None, 16) == bytes(16)
    for ask in (lambda fs: fs.open("/proc/self/status").read(), lambda fs: fs.cat_file("/proc/self/status")):
        assert outcome(ask, fs) == outcome(ask, fsspec.filesystem("file"))


def test_a_file_that_grows_from_nothing_is_a_file(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its size and the one whether there is anything to read."""
    path = tmp_path / "log"
    path.write_bytes(b"")
    pread = _linux.pread

    def written_before(fd: int, start: int, length: int) -> bytes:
        path.write_bytes(CONTENT[:10])
        return pread(fd, start, length)

    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    with monkeypatch.context() as patch:
        patch.setattr(_linux, "pread", written_before)
        assert fs.cat_file(str(path)) == CONTENT[:10]


@pytest.mark.parametrize("bounds", [(None, None), (-10, 6), (None, 5)])
def test_a_directory_has_no_bytes(
    tmp_path: Path, options: dict[str, object], bounds: tuple[int | None, int | None]
) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    with pytest.raises(IsADirectoryError):
        fs.cat_file(str(tmp_path), *bounds)


class Counted(bytes):
    """Counts what is copied out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Counted.copied += len(found) if isinstance(found, bytes) else 1
        return found


def test_a_line_costs_its_own_length(tmp_path: Path, scheduled_mode: str) -> None:
    """And not that of the block which was read ahead."""
    path = tmp_path / "lines.txt"
    path.write_bytes(CONTENT)
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    with fs.open(str(path), "rb", block_size=SIZE) as file:
        first = file.readline()
        file._blocks.keep(0, Counted(file._blocks.take(0)))
        Counted.copied = 0
        lines = [file.readline() for _ in range(100)]
    assert [first, *lines] == [line.encode() for line in LINES[:101]]
    assert Counted.copied == sum(map(len, lines))


def test_readlines_stops_beyond_its_hint(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\ntwo\nthree\n")
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    for hint in (None, -1, 0, 1, 3, 4, 5, 8, 100):
        with fs.open(str(path), "rb") as file, path.open("rb") as plain:
            assert file.readlines(hint) == plain.readlines(-1 if hint is None else hint)


def test_a_file_that_is_closed_while_its_size_is_asked_says_so(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, just after it was seen to be open."""
    (tmp_path / "data").write_bytes(b"data")
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    file = fs.open(tmp_path / "data")
    check = type(file)._check_open

    def check_and_close(file: Any) -> None:
        check(file)
        file.close()

    monkeypatch.setattr(type(file), "_check_open", check_and_close)
    with pytest.raises(ValueError, match="closed file"):
        _ = file.size


def _into(file: Any) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: file.readinto(buffer)])


WAYS_TO_READ: dict[str, Callable[[Any], Callable[[], bytes]]] = {
    "read": lambda file: lambda: file.read(100),
    "readinto": lambda file: lambda: _into(file),
    "read1": lambda file: lambda: file.read1(100),
    "read_buffer": lambda file: lambda: file.read_buffer(100).to_pybytes(),
    "readline": lambda file: file.readline,
    "lines": lambda file: partial(next, iter(file), b""),
    "text": lambda file: partial(lambda text: text.readline().encode(), io.TextIOWrapper(file, newline="")),
}


@pytest.mark.parametrize("is_handler", [False, True], ids=["by_another_thread", "by_a_handler"])
@pytest.mark.parametrize("way", WAYS_TO_READ)
@pytest.mark.parametrize("protocol", ["file", "arecording"])
def test_a_file_that_is_closed_while_it_is_read_does_not_end_early(
    protocol: str,
    path: str,
    way: str,
    is_handler: bool,
    scheduled_mode: str,
    wait_until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The read under way ends as if nothing had been, or says that the file is closed; later ones say so."""
    file = _wrapped(protocol, {"scheduler": scheduled_mode}).open(path, "rb")
    step, got = WAYS_TO_READ[way](file), list[bytes]()
    other = threading.Thread(target=file.close)
    read = type(file)._bytes_at

    def closed_meanwhile(file: Any, start: int, wanted: int) -> bytes:
        data = read(file, start, wanted)
        if is_handler:
            file.close()
        else:
            other.start()
            wait_until(lambda: file.closed)
        return data

    monkeypatch.setattr(type(file), "_bytes_at", closed_meanwhile)
    with pytest.raises(ValueError, match="closed file"):
        got.extend(iter(step, b""))
    assert CONTENT.startswith(b"".join(got))
    if not is_handler:
        assert got
        other.join()


def test_it_says_of_itself_what_fsspecs_files_do(scheduled: headrace.HeadraceFileSystem, path: str) -> None:
    with scheduled.open(path, "rb", block_size=5000) as file:
        assert (file.path, file.name, file.mode, file.blocksize) == (path, path, "rb", 5000)
        assert file.size == len(CONTENT)
        assert file.full_name == scheduled.unstrip_protocol(path)
        assert file.info() == file.details == scheduled.info(path)


def test_a_pickled_file_is_as_urgent_as_it_was(scheduled: headrace.HeadraceFileSystem, path: str) -> None:
    """And takes blocks as it did."""
    for options, block_bytes in (({"cache_type": "none"}, 0), ({"block_size": 5000}, 5000)):
        with scheduled.open(path, "rb", priority=-5, **options) as file:
            file.seek(7)
            again = pickle.loads(pickle.dumps(file))
        with again:
            assert (again.tell(), again.blocksize, again._urgency.priority.base) == (7, block_bytes, -5)
            assert again.read(20) == CONTENT[7:27]


def test_a_pickled_file_that_was_given_no_priority_is_as_urgent_as_who_opens_it_again(
    scheduled: headrace.HeadraceFileSystem, path: str
) -> None:
    """As a task of Dask's, or a view, whose priority goes with it."""
    with (
        headrace.priority(-3),
        scheduled.open(path) as file,
        scheduled.with_priority(4).open(path) as of_view,
    ):
        assert (file._urgency.priority.base, of_view._urgency.priority.base) == (-3, 4)
        pickled = pickle.dumps([file, of_view])
    with headrace.priority(2):
        again = pickle.loads(pickled)
    assert [one._urgency.priority.base for one in again] == [2, 4]


def test_a_pickled_file_of_no_version_is_as_long_as_it_is_now(tmp_path: Path, scheduled_mode: str) -> None:
    """Its length is asked for again, where nothing would tell that it is another one's."""
    path = tmp_path / "object"
    path.write_bytes(CONTENT)
    with _wrapped("arecording", {"scheduler": scheduled_mode}).open(path) as file:
        file.seek(7)
        pickled = pickle.dumps(file)
    path.write_bytes(CONTENT * 2)
    with pickle.loads(pickled) as again:
        assert again.read() == (CONTENT * 2)[7:]


def test_lengths_may_be_narrow_integers_of_numpys(tmp_path: Path, scheduled_mode: str) -> None:
    """A length that was read as a byte, beyond the 256th: added to a position it would be another."""
    path = tmp_path / "records.bin"
    path.write_bytes(b"".join(bytes([10]) + b"x" * 10 for _ in range(100)))
    with headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode).open(
        str(path)
    ) as file:
        for _ in range(100):
            (length,) = np.frombuffer(file.read(1), np.uint8)
            assert file.read(length) == b"x" * 10
        assert file.read(np.uint8(1)) == b""
        file.seek(998)
        assert bytes(file.read_buffer(np.int8(100))) == path.read_bytes()[998:1098]
        file.seek(998)
        assert file.readline(np.int8(100)) == path.read_bytes()[998:1002], "a record begins with a newline"
        file.seek(998)
        assert file.read1(np.uint8(100)) == path.read_bytes()[998:1098]
        for method in (file.read, file.read1, file.readline):
            with pytest.raises(TypeError):
                method(1.5)


@pytest.mark.parametrize("block_size", ["default", None])
def test_the_usual_blocks_by_fsspecs_names(scheduled: Any, path: str, block_size: Any) -> None:
    with scheduled.open(path) as usual, scheduled.open(path, block_size=block_size) as file:
        assert file.blocksize == usual.blocksize
        assert file.read(10) == CONTENT[:10]


def test_a_number_of_bytes_may_be_written_as_a_float(scheduled: Any, path: str) -> None:
    with scheduled.open(path, block_size=5e3) as file:
        assert file.blocksize == 5000
        assert file.read(10) == CONTENT[:10]


@pytest.mark.parametrize(("block_size", "error"), [("1MiB", TypeError), (1.5, TypeError), (-5, ValueError)])
def test_what_is_no_size_of_blocks(
    scheduled: Any, path: str, block_size: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"block_size.* {block_size!r}"):
        scheduled.open(path, block_size=block_size)


@pytest.mark.parametrize("written", [b"written", b""])
def test_fsspecs_own_wrappers_open_it_their_way(tmp_path: Path, mode: str, written: bytes) -> None:
    """By ``_open``: with a protocol in the path, in modes that write, and under ``off``."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=mode)
    path = str(tmp_path / "file")
    with fs._open(f"headrace://{path}", mode="wb") as file:
        file.write(written)
    for spelling in (f"file://{path}", Path(path)):
        with fs._open(spelling) as file:
            assert file.read() == written


def test_a_cache_that_changes_files_is_told_where_to_stand(tmp_path: Path, scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    (tmp_path / "file").write_bytes(CONTENT)
    cached = fsspec.filesystem("blockcache", fs=fs, cache_storage=str(tmp_path / "cache"))
    with pytest.raises(AttributeError, match="must stand behind headrace"):
        cached.open(str(tmp_path / "file"))
