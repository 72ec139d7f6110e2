"""``cat_file``, ``read_ranges``, ``submit_ranges`` and the async twins, in every mode.

Every test runs over each kind of wrapped filesystem and in every mode, serialized included; what
the wrapped filesystem answers is what headrace answers (I8).
"""

from __future__ import annotations

import _thread
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec import AbstractFileSystem
from targets import CONTENT, OTHER, SIZE, Target, at_rest, outcome

import headrace

RANGES = [
    (0, 10),
    (SIZE - 5, SIZE),
    (0, SIZE),
    (5, 100_000),
    (None, 10),
    (10, None),
    (None, None),
    (-10, None),
    (-10, -3),
    (None, -10),
    (100, -100),
    (SIZE - 5, SIZE + 5),
    (0, SIZE + 1),
    (SIZE, SIZE + 5),
    (SIZE + 5, SIZE + 10),
    (SIZE + 5, None),
]


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_cat_file(target: Target, options: dict[str, object], start: int | None, end: int | None) -> None:
    expected = outcome(target.plain.cat_file, target.big, start=start, end=end)
    fs = target.headrace(**options)
    assert outcome(fs.cat_file, target.big, start=start, end=end) == expected
    assert outcome(fs.cat_file, target.big, start, end) == expected
    assert at_rest(fs)


def test_an_empty_range(target: Target, options: dict[str, object]) -> None:
    """Nothing longer than asked is ever returned (I9); a plain s3fs answers the whole object."""
    fs = target.headrace(**options)
    if options["scheduler"] == "off":
        assert fs.cat_file(target.big, start=9, end=9) == target.plain.cat_file(target.big, start=9, end=9)
    else:
        assert fs.cat_file(target.big, start=9, end=9) == b""
        assert fs.cat_ranges([target.big] * 2, [9, 0], [9, 5]) == [b"", CONTENT[:5]]


@pytest.mark.parametrize("end", [10, None])
def test_cat_file_that_is_missing(target: Target, options: dict[str, object], end: int | None) -> None:
    fs = target.headrace(**options)
    expected = outcome(target.plain.cat_file, target.missing, start=0, end=end)
    assert outcome(fs.cat_file, target.missing, start=0, end=end) is expected
    assert at_rest(fs)


def test_cat_file_of_a_directory(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    expected = outcome(target.plain.cat_file, f"{target.root}/sub")
    assert outcome(fs.cat_file, f"{target.root}/sub") is expected
    assert at_rest(fs)


def test_cat_file_error_names_the_path(disk: Target, options: dict[str, object]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
        disk.headrace(**options).cat_file(disk.missing)


def _random_ranges(count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Ranges in no order, with overlaps, duplicates and empty ones."""
    rng = np.random.default_rng(11)
    starts = rng.integers(0, SIZE - 5_000, count)
    starts[::7] = starts[3]
    lengths = rng.integers(0, 5_000, count)
    lengths[::5] = 0
    return starts, starts + lengths


def test_read_ranges(target: Target, options: dict[str, object]) -> None:
    starts, ends = _random_ranges(60 if target.protocol == "s3" else 500)
    batch = target.headrace(**options).read_ranges(target.big, starts, ends)
    expected = [CONTENT[a:b] for a, b in zip(starts, ends, strict=True)]
    assert len(batch) == len(expected)
    assert batch.to_pylist() == expected
    assert [bytes(batch[i]) for i in range(len(batch))] == expected
    assert batch.to_arrow().to_pylist() == expected
    assert batch.to_arrow().type == pa.large_binary()
    assert batch.offsets.tolist() == [0, *np.cumsum([len(b) for b in expected]).tolist()]
    assert batch.buffer.to_pybytes() == b"".join(expected)


def test_read_ranges_of_many_files(target: Target, options: dict[str, object]) -> None:
    paths = [target.big, target.small, target.big, target.small, target.small]
    starts, ends = [7, 0, 200_000, 10, 10], [12, 1_000, 250_000, 20, 20]
    batch = target.headrace(**options).read_ranges(paths, starts, ends)
    whole = {target.big: CONTENT, target.small: OTHER}
    assert batch.to_pylist() == [whole[path][a:b] for path, a, b in zip(paths, starts, ends, strict=True)]


def test_read_ranges_of_nothing(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    assert len(fs.read_ranges(target.big, [], [])) == 0
    assert len(fs.read_ranges([], [], [])) == 0
    assert fs.read_ranges(target.big, [5, 9], [5, 9]).to_pylist() == [b"", b""]


@pytest.mark.parametrize(
    ("start", "end"), [r for r in RANGES if r[1] is not None and (r[0] or 0) >= 0 < r[1]]
)
def test_read_ranges_past_the_end(
    target: Target, options: dict[str, object], start: int | None, end: int
) -> None:
    expected = outcome(target.plain.cat_file, target.big, start=start or 0, end=end)
    fs = target.headrace(**options)

    def read() -> bytes:
        got: list[bytes] = fs.read_ranges(target.big, [start or 0], [end]).to_pylist()
        return got[0]

    assert outcome(read) == expected
    assert at_rest(fs)


def test_read_ranges_into_a_buffer(disk: Target, options: dict[str, object]) -> None:
    out = np.zeros(4_096, np.uint8)
    batch = disk.headrace(**options).read_ranges(disk.big, [100, 0, 5], [110, 10, 15], out=out)
    assert batch.to_pylist() == [CONTENT[100:110], CONTENT[:10], CONTENT[5:15]]
    assert all(np.shares_memory(np.frombuffer(view, np.uint8), out) for view in batch)


def test_read_ranges_into_a_buffer_that_is_too_small(disk: Target, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="out"):
        disk.headrace(**options).read_ranges(disk.big, [0], [100], out=np.zeros(99, np.uint8))


@pytest.mark.parametrize(
    ("starts", "ends", "named"),
    [
        ([0, 1, 2], [1, 2], "3|2"),
        ([-1], [5], "-1"),
        ([10], [5], "10|5"),
        ([0, 30], [5, 20], "30|20"),
        ([[0, 1]], [5, 6], r"starts .* \(1, 2\)"),
    ],
)
def test_read_ranges_that_make_no_sense(
    disk: Target, options: dict[str, object], starts: list[int], ends: list[int], named: str
) -> None:
    fs = disk.headrace(**options)
    with pytest.raises(ValueError, match=named):
        fs.read_ranges(disk.big, starts, ends)
    with pytest.raises(ValueError, match=named):
        fs.submit_ranges(disk.big, starts, ends)
    assert at_rest(fs)


def test_read_ranges_of_a_missing_file(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    expected = outcome(target.plain.cat_file, target.missing, start=0, end=5)
    paths = [target.big, target.missing, target.big]
    batch = fs.read_ranges(paths, [0, 0, 10], [5, 5, 15])
    assert {row: type(error) for row, error in batch.errors.items()} == {1: expected}
    assert (bytes(batch[0]), bytes(batch[2])) == (CONTENT[:5], CONTENT[10:15])
    assert outcome(batch.to_pylist) is expected
    assert outcome(lambda: batch[1]) is expected
    assert at_rest(fs)


def test_a_batch_outlives_its_filesystem(disk: Target, options: dict[str, object]) -> None:
    batch = disk.headrace(skip_instance_cache=True, **options).read_ranges(disk.big, [0], [1000])
    view, array = batch[0], batch.to_arrow()
    del batch
    assert bytes(view) == array[0].as_py() == CONTENT[:1000]


def test_many_threads(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    starts = list(range(0, 200_000, 10_000))

    def read(start: int) -> bool:
        got = fs.read_ranges(target.big, [start, start + 50], [start + 100, start + 9_000])
        single = fs.cat_file(target.big, start=start, end=start + 4_096)
        return bool(
            got.to_pylist() == [CONTENT[start : start + 100], CONTENT[start + 50 : start + 9_000]]
            and single == CONTENT[start : start + 4_096]
        )

    if target.protocol == "zip" and options["scheduler"] == "off":
        starts = starts[:1]  # a plain zip filesystem is not safe to share: off promises no more
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, starts))
    assert at_rest(fs)


def test_submit_ranges(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    reads = [fs.submit_ranges(target.big, [start], [start + 100]) for start in (0, 5_000, 10_000)]
    got = [read.result(timeout=60).to_pylist() for read in reads]
    assert got == [[CONTENT[:100]], [CONTENT[5_000:5_100]], [CONTENT[10_000:10_100]]]
    assert all(read.done() for read in reads)
    del reads, got
    assert at_rest(fs)


def test_submit_ranges_gives_its_result_twice(disk: Target, options: dict[str, object]) -> None:
    read = disk.headrace(**options).submit_ranges(disk.big, [0], [10])
    assert read.result().to_pylist() == read.result().to_pylist() == [CONTENT[:10]]


def test_submit_ranges_of_a_missing_file(disk: Target, options: dict[str, object]) -> None:
    fs = disk.headrace(**options)
    read = fs.submit_ranges(disk.missing, [0], [10])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
        read.result(timeout=60).to_pylist()
    assert read.done()
    del read
    assert at_rest(fs)


def test_async_twins(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)

    async def read() -> tuple[Any, ...]:
        batch = await fs._read_ranges(target.big, [0, 10], [5, 20])
        ranges = await fs._cat_ranges([target.big, target.small], [0, 0], [5, 6])
        return (
            batch.to_pylist(),
            ranges,
            await fs._cat_file(target.big, start=-5, end=None),
            (await fs._info(target.big))["size"],
        )

    expected = ([CONTENT[:5], CONTENT[10:20]], [CONTENT[:5], OTHER[:6]], CONTENT[-5:], SIZE)
    assert asyncio.run(read()) == expected
    assert asyncio.run(read()) == expected, "a second loop must do as well as the first"
    assert at_rest(fs)


def test_many_async_reads_at_once(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    starts = range(0, 100_000, 5_000)

    async def read() -> list[bytes]:
        work = [fs._cat_file(target.big, start=start, end=start + 100) for start in starts]
        return await asyncio.gather(*work)

    assert asyncio.run(read()) == [CONTENT[start : start + 100] for start in starts]


def test_a_sync_read_inside_a_running_loop(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)

    async def read() -> bytes:
        return fs.cat_file(target.big, start=0, end=100)

    assert asyncio.run(read()) == CONTENT[:100]


def test_an_asynchronous_instance(disk: Target, options: dict[str, object]) -> None:
    fs = disk.headrace(asynchronous=True, **options)
    assert fs.async_impl

    async def read() -> bytes:
        return await fs._cat_file(disk.big, start=0, end=100)

    assert asyncio.run(read()) == CONTENT[:100]


async def _twins(fs: Any, target: Target) -> list[Any]:
    """Answer as the sync methods of a plain instance do, of which a list is in `_plain_answers`."""
    folder = target.root + "/sub"
    answers = [
        await fs._cat(target.small),
        sorted((await fs._cat([target.small, target.big])).values()),
        list((await fs._cat(f"{folder}/*.bin")).values()),
        await fs._cat([target.small, target.missing], on_error="omit"),
        await fs._cat_ranges([target.small] * 3, [5, None, -7], [10, 3, None]),
        (await fs._read_ranges(target.small, [5, 0], [10, 3])).to_pylist(),
        (await fs._read_ranges(target.small, [5, 0], [10, 3], out=bytearray(100))).to_pylist(),
        [(sorted(folders), sorted(files)) async for _, folders, files in fs._walk(folder)],
    ]
    if getattr(fs.target, "_s3", None) is not None:
        await fs.target._s3.__aexit__(None, None, None)  # of this loop
    return [sorted(one.values()) if isinstance(one, dict) else one for one in answers]


def _plain_answers() -> list[Any]:
    ranges = [OTHER[5:10], OTHER[:3], OTHER[-7:]]
    plain = [ranges[:2]] * 2
    return [OTHER, sorted([OTHER, CONTENT]), [OTHER], [OTHER], ranges, *plain, [([], ["small.bin"])]]


@pytest.mark.parametrize("protocol", ["file", "arecording", "s3", "s3-s3fs"])
def test_the_twins_of_an_asynchronous_instance(
    targets: dict[str, Target], protocol: str, options: dict[str, object]
) -> None:
    """Its target has no loop but the caller's: a sync method of it would find none running."""
    target = targets[protocol]
    fs = headrace.HeadraceFileSystem(
        target_protocol=target.protocol,
        target_options={**target.options, "skip_instance_cache": True},
        asynchronous=True,
        skip_instance_cache=True,
        **{**target.settings, **options},
    )
    assert asyncio.run(_twins(fs, target)) == _plain_answers()


@pytest.mark.parametrize("name", ["info", "isfile", "isdir", "open", "find"])
def test_callers_that_have_no_frame(
    disk: Target, options: dict[str, object], name: str, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """As C code has none: DuckDB's, or a thread that is nothing but the call."""
    fs, found = disk.headrace(**options), list[Any]()
    _thread.start_new_thread(found.extend, (map(getattr(fs, name), [disk.small]),))
    wait_until(lambda: bool(found))


def test_a_priority_beyond_all_is_named(disk: Target) -> None:
    with pytest.raises(ValueError, match="4294967296"):
        disk.headrace().read_ranges(disk.small, [0], [5], priority=1 << 32)


@pytest.mark.parametrize("priority", ["x", 0.5, (0, 3)])
def test_what_is_no_priority_is_refused_in_every_mode(
    disk: Target, options: dict[str, object], priority: Any
) -> None:
    fs = disk.headrace(**options)
    for read in (fs.read_ranges, fs.submit_ranges):
        with pytest.raises(TypeError, match="priority"):
            read(disk.small, [0], [5], priority=priority)
    with pytest.raises(TypeError, match="priority"):
        fs.open(disk.small, "rb", priority=priority)
    with pytest.raises(TypeError, match="priority"):
        asyncio.run(fs._read_ranges(disk.small, [0], [5], priority=priority))


class Broken(AbstractFileSystem):
    """Its reads fail without a word of what was read."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        raise OSError(5, "boom")


def test_an_error_tells_file_and_range(scheduled_mode: str) -> None:
    """In a note: its type and its words are the wrapped filesystem's (I10)."""
    fs = headrace.wrap(Broken(), scheduler=scheduled_mode)
    batch = fs.read_ranges("folder/key", [0, 100], [10, 110])
    (listed,) = fs.cat_ranges(["folder/key"], [100], [110])
    for error in (batch.errors[1], listed):
        assert (type(error), str(error)) == (OSError, "[Errno 5] boom")
        place, line = error.__notes__
        assert place == "headrace read 'folder/key', bytes 100 to 110"
        assert line.startswith(f"raised in cat_file, {__file__}:")
    with pytest.raises(OSError, match="boom") as caught:
        fs.cat_file("folder/key")
    assert caught.value.__notes__ == ["headrace read 'folder/key'"]


def test_ranges_of_a_path_object(disk: Target, options: dict[str, object]) -> None:
    fs = disk.headrace(**options)
    assert fs.read_ranges(Path(disk.small), [0, 5], [3, 9]).to_pylist() == [OTHER[:3], OTHER[5:9]]
    assert fs.submit_ranges(Path(disk.small), [0], [3]).result(30).to_pylist() == [OTHER[:3]]


def test_ranges_of_paths_of_other_libraries(disk: Target, options: dict[str, object]) -> None:
    fs = disk.headrace(**options)
    for paths in (pa.array([disk.small] * 2), np.array([disk.small] * 2), (disk.small,) * 2):
        assert fs.read_ranges(paths, [0, 5], [3, 9]).to_pylist() == [OTHER[:3], OTHER[5:9]]


@pytest.mark.parametrize("paths", [None, 3, [None], ["small", 3]])
def test_what_is_no_path_is_named(disk: Target, options: dict[str, object], paths: Any) -> None:
    fs = disk.headrace(**options)
    with pytest.raises(TypeError, match=r"path.* not (None|3)"):
        fs.read_ranges(paths, 0, 3)
    if isinstance(paths, list) and fs.mode != "off":
        with pytest.raises(TypeError, match=r"a path is .* not (None|3)"):
            raise fs.cat_ranges(paths * 9, 0, 3)[-1]


def test_our_prefix_is_none_of_a_path_of_the_async_twins(disk: Target, mode: str) -> None:
    fs = disk.headrace(scheduler=mode)
    assert asyncio.run(fs._cat_file(f"headrace://{disk.small}", 0, 4)) == OTHER[:4]


@pytest.mark.parametrize("protocol", ["file", "s3", "s3-s3fs"])
def test_a_read_that_was_cancelled_holds_nothing(
    targets: dict[str, Target], protocol: str, scheduled_mode: str, wait_until: Any
) -> None:
    """Whoever keeps the task does: with its exception it has the frames of the read."""
    target = targets[protocol]
    fs = target.headrace(scheduler=scheduled_mode)

    async def read() -> list[Any]:
        tasks = [asyncio.create_task(fs._cat_file(target.big, 0, SIZE - k)) for k in range(20)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return [tasks, await asyncio.gather(*tasks, return_exceptions=True)]

    kept = asyncio.run(read())
    wait_until(lambda: at_rest(fs))
    assert all(isinstance(answer, asyncio.CancelledError) for answer in kept[1])


@pytest.mark.parametrize("bounds", [(1.0, 3), (0, "3"), (None, 2.5)])
def test_bounds_that_are_no_integers(target: Target, scheduled_mode: str, bounds: Any) -> None:
    fs = target.headrace(scheduler=scheduled_mode)
    with pytest.raises(TypeError):
        fs.cat_file(target.small, *bounds)


@pytest.mark.parametrize("protocol", ["s3", "s3-s3fs"])
def test_the_error_of_a_missing_object_names_it(
    targets: dict[str, Target], protocol: str, scheduled_mode: str
) -> None:
    """The store's own words do not (I10)."""
    target = targets[protocol]
    fs = target.headrace(scheduler=scheduled_mode)
    found = [
        *fs.cat_ranges([target.missing, target.missing], [0, None], [5, None]),
        *fs.read_ranges(target.missing, [0, 7], [5, 9]).errors.values(),
        *fs.cat([target.missing, target.missing + "2"], on_error="return").values(),
    ]
    assert [type(error) for error in found] == [FileNotFoundError] * 6
    assert all(target.missing in str(error) for error in found)


def test_what_only_the_wrapped_filesystem_has_is_told_where_it_is(
    disk: Target, options: dict[str, object]
) -> None:
    fs = disk.headrace(**options)
    with pytest.raises(AttributeError, match=r"no attribute 'chmod'; .* has it: \.target\.chmod"):
        fs.chmod("a", 0o600)
    with pytest.raises(AttributeError, match=r"no attribute 'chmot'$"):
        fs.chmot("a", 0o600)
    assert not hasattr(fs, "_rm_file_of_none")
    assert callable(fs.target.chmod)
