"""How a `HeadraceFileSystem` is made: options, chains, pickles, JSON, and what must stay secret."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import pickle
import weakref
import zipfile
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import pytest
import recording
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.memory import MemoryFileSystem
from plain_http import PlainServer, ranged
from targets import LOG, OTHER, Target

import headrace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_wrap(target: Target, mode: str) -> None:
    plain = target.plain
    assert headrace.wrap(plain).cat_file(target.small) == OTHER
    assert headrace.HeadraceFileSystem(fs=plain, scheduler=mode).cat_file(target.small) == OTHER


def test_what_is_wrapped_is_not_wrapped_again() -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="memory", scheduler="standard", priority=3)
    assert headrace.wrap(fs) is fs
    again = headrace.wrap(fs, priority=2)
    assert again.target is fs.target
    assert again.channel is fs.channel, "with its settings"
    assert headrace.HeadraceFileSystem(fs).target is headrace.HeadraceFileSystem(fs=fs).target is fs.target
    assert [one._base for one in (again, headrace.HeadraceFileSystem(fs=fs))] == [2, 3]
    assert pickle.loads(pickle.dumps(again)).own_options() == {"scheduler": "standard", "priority": 2}


@pytest.mark.parametrize(
    "chain",
    [
        {"target_protocol": "headrace", "target_options": {"target_protocol": "memory", "priority": 3}},
        {"target_protocol": "headrace", "target_options": {"fs": fsspec.filesystem("memory"), "priority": 3}},
    ],
)
def test_what_would_be_made_to_be_wrapped_is_not_wrapped_again(chain: dict[str, Any]) -> None:
    fs = headrace.HeadraceFileSystem(**chain, scheduler="standard")
    assert fs.target is fsspec.filesystem("memory")
    assert (fs._base, fs.mode) == (3, "standard")
    assert fs.with_priority(2).mode == "standard"
    assert headrace.HeadraceFileSystem(**chain, priority=4)._base == 4


def test_a_url_that_chains_ours_twice_is_scheduled_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(OTHER)
    fs, path = fsspec.core.url_to_fs(f"headrace::headrace::{(tmp_path / 'x').as_uri()}")
    assert fs.target is fsspec.filesystem("file")
    assert fs.cat_file(path) == OTHER


def test_what_is_given_by_position_is_as_if_by_name() -> None:
    plain = fsspec.filesystem("memory")
    fs = headrace.HeadraceFileSystem(plain, None, None, None, 3)
    assert fs.own_options()["priority"] == headrace.wrap(fs, scheduler="standard")._base == 3
    assert headrace.HeadraceFileSystem(fs, None, None, None, 5)._base == 5
    assert headrace.HeadraceFileSystem(plain) is headrace.HeadraceFileSystem(fs=plain)
    with pytest.raises(TypeError, match="'fs'"):
        headrace.HeadraceFileSystem(plain, fs=plain)


def test_what_is_wrapped_under_off_is_not_scheduled_beneath_it(disk: Target) -> None:
    fs = headrace.wrap(disk.headrace(scheduler="standard"), scheduler="off")
    with fs.open(disk.small) as file:
        assert not isinstance(file, headrace.HeadraceFile)


def test_instances_are_kept_until_their_class_is_told_to_forget_them() -> None:
    """The wrapped filesystem's class is not: others may have asked for that instance."""
    fs = headrace.HeadraceFileSystem(target_protocol="memory", priority=4)
    assert headrace.HeadraceFileSystem(target_protocol="memory", priority=4) is fs
    headrace.HeadraceFileSystem.clear_instance_cache()
    again = headrace.HeadraceFileSystem(target_protocol="memory", priority=4)
    assert again is not fs
    assert again.target is fs.target


def test_what_is_not_kept_wraps_nothing_that_is() -> None:
    """Or it had the listings of others; a pickle of it is of those that are kept, as of any filesystem."""
    kept = fsspec.filesystem("memory")
    alone = headrace.HeadraceFileSystem(target_protocol="memory", skip_instance_cache=True)
    by_position = headrace.HeadraceFileSystem(None, "memory", skip_instance_cache=True)
    by_url, _ = fsspec.core.url_to_fs("headrace::memory://x", skip_instance_cache=True)
    targets = [fs.target for fs in (alone, by_position, by_url)]
    assert len({id(target) for target in (kept, *targets)}) == 4
    assert pickle.loads(pickle.dumps(alone)).target is kept


class Forgotten(MemoryFileSystem):  # type: ignore[misc]
    """Its class may be told to forget its instances, and no other test's."""


def test_what_the_class_of_the_target_was_told_to_forget_is_wrapped_no_more() -> None:
    fsspec.register_implementation("forgotten", Forgotten, clobber=True)
    fs = headrace.HeadraceFileSystem(target_protocol="forgotten")
    assert headrace.HeadraceFileSystem(target_protocol="forgotten") is fs
    Forgotten.clear_instance_cache()
    again = headrace.HeadraceFileSystem(target_protocol="forgotten")
    assert again.target is fsspec.filesystem("forgotten")
    assert again.target is not fs.target
    assert headrace.HeadraceFileSystem(target_protocol="forgotten") is again


def test_a_loop_goes_to_an_async_target_too() -> None:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        assert headrace.HeadraceFileSystem(target_protocol="http", loop=loop).target.loop is loop
        assert headrace.HeadraceFileSystem(target_protocol="memory", loop=loop).loop is loop


@pytest.mark.parametrize("protocol", ["memory", "http", "s3"])
def test_a_batch_size_is_ours_alone(protocol: str, targets: dict[str, Target]) -> None:
    """By plain URLs s3fs makes its session of it, and fsspec's HTTP its requests: neither takes it."""
    options: dict[str, Any] = targets[protocol].options if protocol in targets else {}
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol, batch_size=3, skip_instance_cache=True, **options
    )
    assert fs.batch_size == 3
    if protocol == "s3":
        assert fs.info(targets["s3"].small)["size"] == len(OTHER)
    if protocol == "http":
        with PlainServer(lambda asked: ranged(asked, OTHER)) as server:
            assert fs.info(f"{server.url}/x")["size"] == len(OTHER)


def test_flat_options_go_to_the_target(tmp_path: Path, mode: str) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", auto_mkdir=True, scheduler=mode)
    fs.pipe_file(str(tmp_path / "new" / "deep" / "x"), b"made")
    assert (tmp_path / "new" / "deep" / "x").read_bytes() == b"made"


def test_flat_options_reach_s3(targets: dict[str, Target], mode: str) -> None:
    target = targets["s3"]
    fs = headrace.HeadraceFileSystem(target_protocol="s3", scheduler=mode, **target.options)
    assert fs.cat_file(target.small) == OTHER
    url = f"headrace::s3://{target.small}"
    with fsspec.open(url, "rb", **target.options) as file:
        assert file.read() == OTHER


def test_conflicting_options_are_refused() -> None:
    with pytest.raises(TypeError, match="auto_mkdir"):
        headrace.HeadraceFileSystem(
            target_protocol="file", target_options={"auto_mkdir": True}, auto_mkdir=False
        )


def test_equal_options_given_twice_are_no_conflict(tmp_path: Path) -> None:
    fs = headrace.HeadraceFileSystem(
        target_protocol="file", target_options={"auto_mkdir": True}, auto_mkdir=True
    )
    fs.pipe_file(str(tmp_path / "new" / "x"), b"made")
    assert fs.cat_file(str(tmp_path / "new" / "x")) == b"made"


@pytest.mark.parametrize("extra", [{"target_protocol": "file"}, {"target_options": {"a": 1}}])
def test_a_filesystem_and_a_description_of_one_are_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="fs="):
        headrace.HeadraceFileSystem(fs=fsspec.filesystem("memory"), **extra)


def test_a_target_is_needed() -> None:
    with pytest.raises((TypeError, ValueError), match="target"):
        headrace.HeadraceFileSystem()


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="nosuchprotocol"):
        headrace.HeadraceFileSystem(target_protocol="nosuchprotocol")


@pytest.mark.parametrize(
    ("name", "value"),
    [("scheduler", "fast"), ("buffer_bytes", "lots"), ("io_parallelism", 0), ("serialize", "x")],
)
def test_a_bad_option_is_named(disk: Target, name: str, value: object) -> None:
    fs = None
    with pytest.raises(ValueError, match=rf"{name}(.|\n)*{value}"):
        fs = disk.headrace(**{name: value}).cat_file(disk.small)
    assert fs is None


def test_a_bad_variable_is_named(disk: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("HEADRACE_SCHEDULER", "fast")
        with pytest.raises(ValueError, match=r"HEADRACE_SCHEDULER.*fast"):
            headrace.reload()
    headrace.reload()
    assert disk.headrace().cat_file(disk.small) == OTHER


def test_off_in_the_environment_beats_the_constructor(
    targets: dict[str, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, log = targets["recording"], recording.read_log(LOG)
    with monkeypatch.context() as patch:
        patch.setenv("HEADRACE_SCHEDULER", "off")
        headrace.reload()
        log.clear()
        target.headrace(scheduler="lite").cat_file(target.small)
        assert [record.is_admitted for record in log.records] == [False]
    headrace.reload()
    log.clear()
    target.headrace(scheduler="lite").cat_file(target.small)
    assert [record.is_admitted for record in log.records] == [True]


@pytest.mark.parametrize("protocol", ["file", "memory", "recording", "arecording", "s3"])
def test_pickle(protocol: str, targets: dict[str, Target], options: dict[str, object]) -> None:
    target = targets[protocol]
    fs = target.headrace(**options)
    again = pickle.loads(pickle.dumps(fs))
    assert again == fs
    assert again.cat_file(target.small) == OTHER
    view = fs.with_priority(-3)
    again = pickle.loads(pickle.dumps(view))
    assert again == view
    assert again.cat_file(target.small) == OTHER


@pytest.mark.parametrize("protocol", ["file", "memory", "recording", "arecording", "s3"])
def test_json(protocol: str, targets: dict[str, Target], options: dict[str, object]) -> None:
    target = targets[protocol]
    fs = target.headrace(**options)
    again = fsspec.AbstractFileSystem.from_json(fs.to_json())
    assert again == fs
    assert again.cat_file(target.small) == OTHER


def test_a_wrapped_instance_survives_pickle_and_json(disk: Target, mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=disk.plain, scheduler=mode)
    assert pickle.loads(pickle.dumps(fs)).cat_file(disk.small) == OTHER
    assert fsspec.AbstractFileSystem.from_json(fs.to_json()).cat_file(disk.small) == OTHER


SECRETS = {"key": "AKIAVERYSECRET", "secret": "hush-hush-hush", "token": "tok-12345"}


NO_RETRIES = {"retries": {"max_attempts": 0}}


@pytest.mark.parametrize("flat", [True, False])
def test_secrets_stay_secret(mode: str, flat: bool) -> None:
    options = dict(SECRETS, endpoint_url="http://127.0.0.1:9")
    if flat:
        fs = headrace.HeadraceFileSystem(target_protocol="s3", scheduler=mode, **options)
    else:
        fs = headrace.HeadraceFileSystem(target_protocol="s3", target_options=options, scheduler=mode)
    view = fs.with_priority(-1)
    shown = [repr(fs), str(fs), repr(view), repr(fs.stats()), fs.stats()._repr_html_()]
    shown += [fs.to_json(include_password=False), json.dumps(fs.to_dict(include_password=False))]
    for text in shown:
        assert not [secret for secret in SECRETS.values() if secret in text], text
    assert SECRETS["secret"] in fs.to_json(include_password=True)


def test_secrets_stay_out_of_errors(mode: str) -> None:
    options = dict(SECRETS, endpoint_url="http://127.0.0.1:9", config_kwargs=NO_RETRIES)
    fs = headrace.HeadraceFileSystem(target_protocol="s3", target_options=options, scheduler=mode, retries=0)
    with pytest.raises(Exception, match=r"127\.0\.0\.1|bucket/key") as failed:
        fs.cat_file("bucket/key", start=0, end=10)
    assert not [secret for secret in SECRETS.values() if secret in str(failed.value)]
    for bad in ({"scheduler": "fast"}, {"key": "another"}):
        with pytest.raises((TypeError, ValueError)) as refused:
            headrace.HeadraceFileSystem(target_protocol="s3", target_options=options, **bad)
        assert not [s for s in [*SECRETS.values(), "another"] if s in str(refused.value)]


@pytest.mark.parametrize("protocol", ["file", "memory", "zip", "recording"])
def test_chained_urls(protocol: str, targets: dict[str, Target], environment_mode: str) -> None:
    target = targets[protocol]
    url = f"headrace::{protocol}://{target.small}"
    storage = {protocol: target.options}
    with fsspec.open(url, "rb", **storage) as file:
        assert file.read() == OTHER, environment_mode
    fs, path = fsspec.core.url_to_fs(url, **storage)
    assert isinstance(fs, headrace.HeadraceFileSystem)
    assert fs.cat_file(path) == OTHER
    other, _ = fsspec.core.url_to_fs(f"headrace::{protocol}://{target.big}", **storage)
    assert (other is fs) == (target.plain is target.plain)


def _zip(path: Path, content: bytes) -> None:
    """Put an archive of one file in the place of what is there."""
    with zipfile.ZipFile(path.with_suffix(".new"), "w") as archive:
        archive.writestr("data/a.csv", content)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("chain", ["zip", "headrace::zip"])
def test_an_archive_that_was_replaced_is_opened_again(tmp_path: Path, mode: str, chain: str) -> None:
    path = tmp_path / "x.zip"
    options = {"headrace": {"scheduler": mode}}
    for content in (b"old", b"new"):
        _zip(path, content)
        with fsspec.open(f"headrace::{chain}://data/a.csv::{path.as_uri()}", "rb", **options) as file:
            assert file.read() == content


WAYS: dict[str, Callable[[dict[str, str]], Any]] = {
    "by name": lambda options: headrace.HeadraceFileSystem(target_protocol="zip", target_options=options),
    "wrap": lambda options: headrace.wrap(fsspec.filesystem("zip", **options)),
    "view": lambda options: WAYS["by name"](options).with_priority(2),
    "pickle": lambda options: pickle.loads(pickle.dumps(WAYS["wrap"](options))),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_archive_is_closed_when_nobody_has_it_any_more(
    tmp_path: Path, environment_mode: str, way: str
) -> None:
    """At once, as the plain filesystem's: in a cycle it would be open until Python collects garbage."""
    _zip(tmp_path / "x.zip", b"content")
    gc.disable()
    try:
        fs = WAYS[way]({"fo": str(tmp_path / "x.zip")})
        assert fs.cat_file("data/a.csv") == b"content", environment_mode
        target = weakref.ref(fs.target)
        del fs
        assert target() is None
    finally:
        gc.enable()


def test_what_was_made_for_one_is_not_kept_for_others() -> None:
    """A view is made and let go of as the filesystem that it is a view of, and has its target."""
    kept = headrace.HeadraceFileSystem(target_protocol="memory", scheduler="lite")
    assert kept.with_priority(3) is kept.with_priority(3)
    options = {"skip_instance_cache": True}
    alone = headrace.HeadraceFileSystem(target_protocol="memory", scheduler="lite", **options)
    over = headrace.HeadraceFileSystem(target_protocol="memory", target_options=options, scheduler="lite")
    for fs in (alone, over, headrace.wrap(type(fsspec.filesystem("memory"))(**options), scheduler="lite")):
        view = fs.with_priority(3)
        assert view.target is fs.target
        assert view.channel is fs.channel
        gone = weakref.ref(view)
        del view
        assert gone() is None


def test_filesystems_that_are_not_kept_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """fsspec keeps `dir` by the text of what it wraps, here two that were made of the same options."""
    found = []
    for content in (b"old", b"new"):
        _zip(tmp_path / "x.zip", content)
        options = {"fo": str(tmp_path / "x.zip")}
        fs = headrace.HeadraceFileSystem(target_protocol="zip", target_options=options)
        found.append(fsspec.filesystem("dir", path="data", fs=fs).cat_file("a.csv"))
    assert found == [b"old", b"new"]


class Ours(headrace.HeadraceFileSystem):
    pass


def test_a_class_derived_from_ours_keeps_what_ours_does(tmp_path: Path) -> None:
    _zip(tmp_path / "x.zip", b"content")
    options = {"fo": str(tmp_path / "x.zip")}
    assert Ours(target_protocol="memory") is Ours(target_protocol="memory")
    made = [Ours(target_protocol="zip", target_options=options) for _ in range(2)]
    assert made[0] is not made[1]
    assert Ours._strip_protocol("headrace://x") == "x"  # without an instance there is no target to ask


class Shifted(headrace.HeadraceFileSystem):
    """Reads files whose bytes were shifted."""

    def __init__(self, fs: Any = None, shift: int = 0, **options: Any) -> None:
        super().__init__(fs=fs, **options)
        self._shift = shift

    def cat_file(self, path: Any, start: Any = None, end: Any = None, **options: Any) -> bytes:
        return bytes((one - self._shift) % 256 for one in super().cat_file(path, start, end, **options))


@pytest.mark.parametrize("is_made", [False, True])
def test_what_a_derived_class_does_is_not_unwrapped(disk: Target, is_made: bool) -> None:
    target = {"target_protocol": "file", "auto_mkdir": False} if is_made else {"fs": disk.plain}
    shifted = Shifted(shift=1, priority=3, **target)
    expected = bytes((one - 1) % 256 for one in OTHER)
    again = headrace.wrap(shifted, scheduler="standard")
    assert again.own_options() == {"shift": 1, "priority": 3, "scheduler": "standard"}
    for fs in (shifted, again, headrace.wrap(shifted), shifted.with_priority(2), Shifted(shifted)):
        assert fs.cat_file(disk.small) == expected
        assert fs.target is disk.plain or is_made
    assert headrace.HeadraceFileSystem(fs=shifted).cat_file(disk.small) == expected
    assert Shifted(headrace.HeadraceFileSystem(fs=disk.plain), 1).cat_file(disk.small) == expected


class Free(headrace.HeadraceFileSystem):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(args[0], **options)
        self.others = args[1:]


def test_a_derived_class_may_take_any_number_of_arguments() -> None:
    fs = Free(fsspec.filesystem("memory"), "a", "b", priority=3)
    again = Free(fs, "c")
    assert again.target is fs.target
    assert (again.others, again._base) == (("c",), 3)


def test_dask_tokens_tell_options_of_a_derived_class_apart(disk: Target) -> None:
    def made(kind: Any, *args: Any, **options: Any) -> Any:
        return kind(disk.headrace().target, *args, skip_instance_cache=True, **options)

    assert made(Shifted, 1).__dask_tokenize__() == made(Shifted, shift=1).__dask_tokenize__()
    assert made(Free, 1).__dask_tokenize__() == made(Free, 1).__dask_tokenize__()
    few = [made(Shifted, 1), made(Shifted, 2), made(Free, 1), made(Free, 2), made(Free, 2, priority=1)]
    assert len({fs.__dask_tokenize__() for fs in few}) == len(few)


def test_unstrip_protocol(target: Target, mode: str) -> None:
    fs = target.headrace(scheduler=mode)
    assert fs._strip_protocol(target.big) == target.plain._strip_protocol(target.big)
    assert fs.sep == target.plain.sep


def test_wrapping_two_headrace_filesystems_is_no_mix_up(tmp_path: Path) -> None:
    """fsspec keys its instance cache by the text of what is wrapped: two must never read the same."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    inner = []
    for name in ("a", "b"):
        (tmp_path / name / "file").write_bytes(name.encode())
        options = {"path": str(tmp_path / name), "target_protocol": "file"}
        inner.append(headrace.HeadraceFileSystem(target_protocol="dir", target_options=options))
    outer = [headrace.wrap(fs) for fs in inner]
    assert [fs.cat_file("file") for fs in outer] == [b"a", b"b"]


@pytest.mark.parametrize("fs", ["file", 3])
def test_what_is_no_filesystem(fs: Any) -> None:
    with pytest.raises(TypeError, match=r"fs must be a filesystem.*target_protocol="):
        headrace.wrap(fs)


def test_what_is_no_filesystem_of_fsspecs_is_told_from_one_of_its_name() -> None:
    with pytest.raises(TypeError, match=r"not pyarrow\._fs\.LocalFileSystem"):
        headrace.wrap(pyarrow.fs.LocalFileSystem())


def test_a_url_that_chains_nothing() -> None:
    with pytest.raises(TypeError, match=r"headrace::s3://"):
        fsspec.open("headrace:///tmp/x")


@pytest.mark.parametrize(
    ("protocol", "preferred"), [("file", "lite"), ("s3", "standard"), ("s3-s3fs", "standard")]
)
def test_by_default_the_backend_says_who_drives(
    protocol: str, preferred: str, targets: dict[str, Target]
) -> None:
    for chosen in ({}, {"scheduler": "auto"}):
        assert targets[protocol].headrace(**chosen).mode == preferred


def test_a_misspelt_option_is_told() -> None:
    with pytest.warns(headrace.HeadraceWarning, match="'shceduler'.*'scheduler'") as told:
        headrace.HeadraceFileSystem(target_protocol="file", shceduler="lite", skip_instance_cache=True)
    assert {warning.filename for warning in told} == {__file__}


def test_a_targets_own_option_is_not_taken_for_ours() -> None:
    headrace.HeadraceFileSystem(target_protocol="file", timeout=3, max_retries=2)  # a warning would fail this


def test_the_text_shows_what_was_given() -> None:
    given = headrace.HeadraceFileSystem(target_protocol="file", scheduler="lite")
    assert "LocalFileSystem, scheduler='lite', " in repr(given)
    assert "scheduler" not in repr(headrace.HeadraceFileSystem(target_protocol="file"))


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_is_made_awaitable_is_wrapped_itself(
    tmp_path: Path, scheduled_mode: str, asynchronous: bool, is_named: bool
) -> None:
    """Its files are read as those of the filesystem that it is, and awaited as ours are."""
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    if is_named:
        given = {"target_protocol": "file", "target_options": {}, "asynchronous": asynchronous}
        wrapped = {"target_protocol": "asyncwrapper", "target_options": given}
    else:
        inner = fsspec.filesystem("file")
        wrapped = {"fs": AsyncFileSystemWrapper(inner, asynchronous=asynchronous)}
    fs = headrace.HeadraceFileSystem(
        **wrapped, asynchronous=asynchronous, scheduler=scheduled_mode, skip_instance_cache=True
    )
    assert fs.backend_name == headrace.wrap(fsspec.filesystem("file")).backend_name
    assert await fs._cat_file(str(path), 2, 5) == b"234"
    assert await fs._cat_ranges([str(path)] * 2, [0, 5], [3, 9]) == [b"012", b"5678"]
    assert (await fs._info(str(path)))["size"] == 10
    await fs._pipe_file(str(path), b"new")
    assert pickle.loads(pickle.dumps(fs)).cat_file(path) == b"new"


def test_what_is_made_awaitable_is_wrapped_once() -> None:
    """By one of ours, that of what it makes awaitable: each of its own would be kept for ever."""
    inner = fsspec.filesystem("memory")
    fs = headrace.wrap(inner)
    pickled = pickle.dumps(headrace.wrap(AsyncFileSystemWrapper(inner)))
    kept = len(headrace.HeadraceFileSystem._cache)
    for given in (AsyncFileSystemWrapper(inner), AsyncFileSystemWrapper(fs)):
        assert headrace.wrap(given) is fs
        assert headrace.HeadraceFileSystem(fs=given, scheduler="lite").target is inner
    assert pickle.loads(pickled) is pickle.loads(pickled) is fs
    assert len(headrace.HeadraceFileSystem._cache) == kept + 1


async def test_streams_that_the_target_has_not() -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", asynchronous=True)
    with pytest.raises(NotImplementedError, match="LocalFileSystem"):
        await fs.open_async("x")
