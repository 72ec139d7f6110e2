"""What is no read is the wrapped filesystem's own: metadata, writes, downloads, signed URLs."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from targets import CONTENT, OTHER, SIZE, Target, outcome

import headrace


def test_metadata_is_the_wrapped_filesystems(target: Target, mode: str) -> None:
    fs, plain = target.headrace(scheduler=mode), target.plain
    names = ["info", "exists", "isfile", "isdir", "size", "checksum", "ukey"]
    if target.protocol == "zip":
        names.remove("ukey")  # of a plain zip it changes from call to call
    for name in names:
        ask, ask_plain = getattr(fs, name), getattr(plain, name)
        assert ask(target.big) == ask_plain(target.big), name
    assert fs.exists(target.missing) is False
    assert fs.isdir(f"{target.root}/sub") is True
    assert fs.find(target.root) == plain.find(target.root)
    assert fs.find(target.root, detail=True) == plain.find(target.root, detail=True)
    assert fs.ls(target.root, detail=False) == plain.ls(target.root, detail=False)
    assert fs.glob(f"{target.root}/*.bin") == plain.glob(f"{target.root}/*.bin")
    assert fs.du(target.root) == plain.du(target.root) == SIZE + len(OTHER)
    assert list(fs.walk(target.root)) == list(plain.walk(target.root))
    assert fs.sizes([target.big]) == [SIZE]


@pytest.mark.parametrize("name", ["created", "modified"])
def test_times_are_the_wrapped_filesystems(target: Target, mode: str, name: str) -> None:
    expected = outcome(getattr(target.plain, name), target.big)
    assert outcome(getattr(target.headrace(scheduler=mode), name), target.big) == expected


def test_a_folder_is_the_wrapped_filesystems(target: Target, mode: str) -> None:
    fs, plain = target.headrace(scheduler=mode), target.plain
    for path in (target.small, target.root, "/a", "a/b", ""):
        assert fs._parent(path) == plain._parent(path)
    assert type(fs)._parent("a/b") == "a", "and of none it is fsspec's"


def test_sign_is_the_wrapped_filesystems(targets: dict[str, Target], mode: str) -> None:
    target = targets["s3"]
    url = target.headrace(scheduler=mode).sign(target.big, expiration=60)
    assert url.startswith(f"{target.options['endpoint_url']}/{target.big}")


def test_listings_are_the_wrapped_filesystems(targets: dict[str, Target], mode: str) -> None:
    """Who empties what keeps them is told of what is there now."""
    target = targets["s3"]
    folder = f"{target.root}/listed-{mode}"
    fs, other = (
        target.headrace(scheduler=mode),
        type(target.plain)(**target.options, skip_instance_cache=True),
    )
    other.pipe_file(f"{folder}/a", b"a")
    assert fs.ls(folder, detail=False) == [f"{folder}/a"]
    other.pipe_file(f"{folder}/b", b"b")
    assert fs.ls(folder, detail=False) == [f"{folder}/a"]
    fs.dircache.clear()
    assert fs.ls(folder, detail=False) == [f"{folder}/a", f"{folder}/b"]
    assert [info["name"] for info in fs._ls_from_cache(folder)] == [f"{folder}/a", f"{folder}/b"]
    fs.rm(folder, recursive=True)


def test_writes(tmp_path: Path, options: dict[str, object]) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    fs.pipe({one: b"1", two: b"22"})
    assert fs.cat([one, two]) == {one: b"1", two: b"22"}
    fs.pipe_file(one, b"new")
    assert fs.cat_file(one) == b"new"
    with fs.open(two, "wb") as file:
        file.write(b"written")
    with fs.open(two, "ab") as file:
        file.write(b" more")
    assert fs.cat_file(two) == b"written more"
    fs.mv(two, str(tmp_path / "three"))
    fs.rm(one)
    assert [Path(path).name for path in fs.ls(str(tmp_path), detail=False)] == ["three"]


class Moving(AsyncFileSystem):
    """It can move a file, and tells what its store answered to a write."""

    protocol = "moving"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.moved: list[tuple[str, str]] = []

    async def _pipe_file(self, path: str, value: bytes, **_: Any) -> str:
        return f"{path} has {len(value)}"

    async def _mv_file(self, path1: str, path2: str) -> None:
        self.moved.append((path1, path2))


def test_what_a_store_answers_to_a_write_is_the_callers(mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=Moving(), scheduler=mode)
    assert fs.pipe({"a": b"1", "b": b"22"}) == ["a has 1", "b has 2"]
    assert fs.pipe("a", b"1") == fs.target.pipe("a", b"1")
    assert asyncio.run(fs._pipe({"a": b"1"})) == ["a has 1"]


def test_an_awaited_move_is_the_wrapped_filesystems(tmp_path: Path, mode: str) -> None:
    target = Moving()
    asyncio.run(headrace.HeadraceFileSystem(fs=target, scheduler=mode)._mv_file("headrace::a", "b"))
    assert target.moved == [("a", "b")]
    (tmp_path / "one").write_bytes(b"1")
    local = headrace.HeadraceFileSystem(target_protocol="file", scheduler=mode)
    asyncio.run(local._mv_file(str(tmp_path / "one"), str(tmp_path / "two")))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("two", b"1")]


def test_our_prefix_is_none_of_a_path_that_is_named_either(tmp_path: Path, mode: str) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=mode)
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    here.write_bytes(b"1")
    fs.put(lpath=str(here), rpath=f"headrace://{there}")
    fs.get(rpath=f"headrace://{there}", lpath=str(back))
    assert (there.read_bytes(), back.read_bytes()) == (b"1", b"1")


@pytest.mark.parametrize("protocol", ["file", "memory", "s3"])
def test_a_rewritten_file_is_read_anew(
    protocol: str, targets: dict[str, Target], options: dict[str, object]
) -> None:
    target = targets[protocol]
    fs, path = target.headrace(**options), f"{target.root}-rewritten"
    for content in (b"first", b"second and longer", b"3"):
        fs.pipe_file(path, content)
        assert fs.cat_file(path) == content
        assert fs.cat_ranges([path], 0, len(content)) == [content]
        with fs.open(path, "rb") as file:
            assert file.read() == content
    fs.rm(path)
    assert outcome(fs.cat_file, path) is FileNotFoundError


def test_get(target: Target, tmp_path: Path, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    fs.get(target.root, str(tmp_path / "copy"), recursive=True)
    assert (tmp_path / "copy" / "big.bin").read_bytes() == CONTENT
    assert (tmp_path / "copy" / "sub" / "small.bin").read_bytes() == OTHER


RELATIVE = ["data", "data/", "./data", "data/../data", ".", ".."]


@pytest.mark.parametrize("asked", [*RELATIVE, "{}/data", "file://{}/data"])
def test_what_is_found_under_a_relative_path(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """Is named by it where details are asked for, as Arrow wants it, and else as the target names it."""
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "data" / "in" / "x").write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "data" if asked in (".", "..") else tmp_path)
    path = asked.format(tmp_path)
    fs, plain = headrace.HeadraceFileSystem(target_protocol="file", **options), fsspec.filesystem("file")
    assert fs.find(path) == plain.find(path)
    found = fs.find(path, withdirs=True, detail=True)
    expected = plain.find(path, withdirs=True, detail=True)
    assert list(found.values()) == list(expected.values())
    assert all(name.startswith(path.rstrip("/")) for name in found) == (asked != "file://{}/data")
    assert list(map(os.path.realpath, found)) == list(map(os.path.realpath, expected))


@pytest.mark.parametrize("name", ["run_12:30", "c:", "filed:x"])
def test_a_colon_in_a_relative_path_is_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "x").touch()
    fs = headrace.HeadraceFileSystem(target_protocol="file")
    assert set(fs.find(name, detail=True)) == {f"{name}/x"}
    assert set(fs.find(f"file:{name}", detail=True)) == {f"{tmp_path}/{name}/x"}


def test_what_is_found_from_the_root(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    found = fs.find(".", maxdepth=1, withdirs=True, detail=True)
    names = sorted(info["name"] for info in found.values())
    assert sorted(name.removeprefix(".") for name in found) == names


def test_a_folder_that_goes_while_it_is_listed_is_none(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "part").write_bytes(b"x")
    access = os.access

    def remove_and_ask(name: str, mode: int) -> bool:
        if name.endswith("temporary"):
            Path(name).rmdir()
        return access(name, mode)

    monkeypatch.setattr(os, "access", remove_and_ask)
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    assert fs.find(str(tmp_path)) == [str(tmp_path / "part")]


def test_a_folder_that_may_not_be_listed_is_an_error(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec leaves out what lies in it, and a scan would have fewer rows."""
    closed = tmp_path / "data" / "closed"
    closed.mkdir(parents=True)
    for folder in (closed, closed.parent):
        pq.write_table(pa.table({"a": [1]}), folder / "part.parquet")
    access = os.access  # a mode of 0 does not stop the superuser
    monkeypatch.setattr(os, "access", lambda name, mode: name != str(closed) and access(name, mode))
    fs = headrace.HeadraceFileSystem(target_protocol="file", **options)
    with pytest.raises(PermissionError, match="closed"):
        ds.dataset(str(closed.parent), filesystem=fs)
    with pytest.raises(PermissionError, match="closed"):
        fs.find(str(closed))
    with pytest.raises(PermissionError, match="closed"):
        asyncio.run(fs._find(str(closed.parent)))
    assert fs.find(str(tmp_path / "nothing")) == []
    assert len(fs.find(str(closed.parent), on_error="omit")) == 2
    monkeypatch.undo()
    plain = LocalFileSystem()
    for path in (str(closed.parent / "part.parquet"), str(tmp_path / "data")):
        for asked in (
            {},
            {"maxdepth": 1},
            {"maxdepth": 1, "withdirs": True},
            {"maxdepth": 1, "detail": True},
        ):
            assert fs.find(path, **asked) == plain.find(path, **asked)


class Alone(AbstractFileSystem):
    """Counts the threads that are in it at once."""

    protocol = "alone"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.most = 0, 0
        self.is_crowded = threading.Event()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside > 1:
            self.is_crowded.set()
        self.is_crowded.wait(0.05)
        self.inside -= 1
        return path.encode()


def test_async_calls_enter_a_sync_filesystem_one_at_a_time(mode: str) -> None:
    """Under ``off`` too: a program that awaits them has no threads, and no reason to think of them."""
    target = Alone()
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=mode)

    async def read() -> list[bytes]:
        return await asyncio.gather(*(fs._cat_file(path) for path in "abc"))

    assert asyncio.run(read()) == [b"a", b"b", b"c"]
    assert target.most == 1


class Listing(AbstractFileSystem):
    """Folders in folders; it tells whether two threads are inside at once."""

    protocol = "listing"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Lock()
        self.listed, self.is_entered = threading.Event(), threading.Event()
        self.asked: list[str] = []

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        assert self.inside.acquire(blocking=False), "a thread was inside"
        self.inside.release()
        self.asked.append(path)
        return [{"name": f"{path}/a", "type": "directory", "size": 0}] if path.count("a") < 3 else []

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        with self.inside:
            self.is_entered.set()
            self.listed.wait(0.05)
        return b"1"


@pytest.mark.parametrize("topdown", [True, False])
def test_a_walk_enters_a_sync_filesystem_between_reads(scheduled_mode: str, topdown: bool) -> None:
    """Each of its steps: a generator is entered whenever it goes on."""
    target = Listing()
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode)
    folders = list(target.walk("/r", topdown=topdown))
    steps = fs.walk("/r", topdown=topdown)
    read = fs.submit_ranges("/r/f", [0], [1])
    assert target.is_entered.wait(10)
    assert list(steps) == folders
    assert read.result().to_pylist() == [b"1"]


def test_a_walk_goes_where_the_caller_says(mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=Listing(), scheduler=mode)
    found = []
    for path, folders, _files in fs.walk("/r"):
        found.append(path)
        folders.clear()
    assert found == ["/r"]


async def test_an_awaited_walk_goes_where_the_caller_says_too(mode: str) -> None:
    """And no further: a folder that is not come to is not listed."""
    target = Listing()
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=mode)
    found = []
    async for path, folders, _files in fs._walk("/r"):
        found.append(path)
        folders.clear()
    assert found == target.asked == ["/r"]


def test_folders_that_lead_to_each_other_end(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as many ways through them as orders; a loop in them was never followed."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=mode)
    for name in "abcdef":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in "abcdef":
        for other in set("abcdef") - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    files = [name for name in fs.find(str(tmp_path / "a"), maxdepth=3) if name.endswith("/file")]
    assert len(files) == 1 + 5 + 5 * 4
    monkeypatch.setattr("headrace.delegation.MOST_NESTED_LINKS", 100)
    with pytest.raises(OSError, match="Too many levels of symbolic links") as caught:
        fs.find(str(tmp_path))
    assert caught.value.errno == errno.ELOOP
