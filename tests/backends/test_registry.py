"""Backends are found by entry point and loaded when asked for; a broken one breaks nothing."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from headrace.backends import registry
from headrace.backends.fsspec_sync import SyncBackend
from headrace.backends.local import LocalBackend
from headrace.backends.memory import MemoryBackend
from headrace.backends.uring import UringBackend
from headrace.errors import BackendError

Install = Callable[..., None]


class Eager(MemoryBackend):
    name = "eager"
    rank = 1000


class Shy(MemoryBackend):
    name = "shy"
    rank = -1


NO_BACKEND = object()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that registers backends in place of those installed."""

    def install(**values: str) -> None:
        points = {name: EntryPoint(name, value, registry.GROUP) for name, value in values.items()}
        monkeypatch.setattr(registry, "entry_points", lambda: points)
        _forget()

    _forget()
    yield install
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    registry.load.cache_clear()
    registry._loaded.cache_clear()
    registry._is_usable_always.cache_clear()


def _here(name: str) -> str:
    return f"{__name__}:{name}"


def test_what_is_shipped_is_registered() -> None:
    assert {"local", "uring", "memory", "fsspec", "fsspec-async"} <= registry.entry_points().keys()
    assert registry.load("local") is LocalBackend
    for name in registry.entry_points():
        assert registry.load(name).name == name


def test_a_filesystem_gets_the_backend_of_highest_rank(install: Install) -> None:
    local = UringBackend if UringBackend.unavailable() is None else LocalBackend
    assert type(registry.backend_for(LocalFileSystem())) is local
    assert type(registry.backend_for(LocalFileSystem(), frozenset({"uring"}))) is LocalBackend
    assert type(registry.backend_for(MemoryFileSystem())) is MemoryBackend
    shipped = "headrace.backends.memory:MemoryBackend"
    for values in (
        {"shy": _here("Shy"), "eager": _here("Eager"), "memory": shipped},
        {"eager": _here("Eager"), "memory": shipped, "shy": _here("Shy")},
    ):
        install(**values)
        assert type(registry.backend_for(MemoryFileSystem())) is Eager
    install(shy=_here("Shy"), memory=shipped)
    assert type(registry.backend_for(MemoryFileSystem())) is MemoryBackend


def test_a_subclass_of_a_filesystem_is_another_filesystem() -> None:
    class Mine(LocalFileSystem):
        pass

    assert isinstance(registry.backend_for(Mine()), SyncBackend)


def test_each_asks_for_a_backend_of_its_own() -> None:
    target = MemoryFileSystem()
    first, second = registry.backend_for(target), registry.backend_for(target)
    assert first is not second
    assert first.target is second.target is target


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module_anywhere:Backend", "No module named"),
        (_here("NoSuchClass"), "NoSuchClass"),
        (_here("NO_BACKEND"), "no subclass"),
        (_here("test_each_asks_for_a_backend_of_its_own"), "no subclass"),
        ("builtins:dict", "no subclass"),
    ],
)
def test_a_broken_backend_is_passed_over_with_a_warning(
    install: Install, caplog: pytest.LogCaptureFixture, value: str, why: str
) -> None:
    install(broken=value, memory="headrace.backends.memory:MemoryBackend")
    with caplog.at_level(logging.WARNING, logger="headrace"):
        for _ in range(3):
            assert isinstance(registry.backend_for(MemoryFileSystem()), MemoryBackend)
    warned = [record for record in caplog.records if "broken" in record.getMessage()]
    assert len(warned) == 1, "one warning, not one for each filesystem"
    assert why in warned[0].getMessage()
    assert value in warned[0].getMessage()
    with pytest.raises(BackendError, match="broken"):
        registry.load("broken")


def test_an_unknown_name_is_an_error_that_names_the_known() -> None:
    with pytest.raises(BackendError, match=r"'nowhere'.*'fsspec'.*'local'"):
        registry.load("nowhere")


def test_a_filesystem_that_nobody_serves_is_an_error(install: Install) -> None:
    install(memory="headrace.backends.memory:MemoryBackend")
    with pytest.raises(BackendError, match=r"LocalFileSystem.*'memory'"):
        registry.backend_for(LocalFileSystem())


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout))


def test_backends_are_loaded_when_they_are_needed() -> None:
    loaded = _modules_after("import headrace")
    assert "headrace.backends.registry" in loaded
    assert not loaded & {
        "headrace.backends.local",
        "headrace.backends.memory",
        "headrace.backends.fsspec_sync",
        "headrace.backends.fsspec_async",
    }


def test_import_headrace_imports_nothing_of_tests() -> None:
    loaded = _modules_after(
        "import headrace\n"
        "fs = headrace.HeadraceFileSystem(target_protocol='memory')\n"
        "fs.pipe('/a', b'1')\n"
        "assert fs.cat('/a') == b'1'"
    )
    assert "headrace.backends.memory" in loaded
    assert not loaded & {"pytest", "_pytest", "headrace.testing", "matplotlib"}
    assert not _modules_after("import headrace.testing") & {"pytest", "aiohttp"}
    assert "pytest" in _modules_after("from headrace.testing import BackendTests")


def test_a_backend_may_serve_what_others_serve_too(install: Install) -> None:
    served: dict[str, Any] = {}
    install(eager=_here("Eager"), fsspec="headrace.backends.fsspec_sync:SyncBackend")
    for target in (MemoryFileSystem(), LocalFileSystem()):
        served[type(target).__name__] = type(registry.backend_for(target))
    assert served == {"MemoryFileSystem": Eager, "LocalFileSystem": SyncBackend}


class Ringing(Eager):
    """A signal comes when it is asked for the first time whether it can be used."""

    name = "ringing"
    is_asked = False

    @classmethod
    def unavailable(cls) -> str | None:
        if not cls.is_asked:
            cls.is_asked = True
            signal.raise_signal(signal.SIGALRM)
        return None


@pytest.mark.parametrize("place", ["load", "unavailable"])
def test_what_a_signals_handler_raises_is_not_remembered(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    def alarm(*_: object) -> None:
        message = "the limit"
        raise TimeoutError(message)

    def load(_point: EntryPoint) -> Any:
        signal.raise_signal(signal.SIGALRM)

    install(ringing=_here("Ringing"), memory="headrace.backends.memory:MemoryBackend")
    Ringing.is_asked = place == "load"
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with monkeypatch.context() as patched:
            if place == "load":
                patched.setattr(EntryPoint, "load", load)
            with pytest.raises(TimeoutError, match="the limit"):
                registry.backend_for(MemoryFileSystem())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert type(registry.backend_for(MemoryFileSystem())) is Ringing
    assert not caplog.records


class Puzzled(MemoryBackend):
    """Cannot tell whether it can be used."""

    rank = 200
    is_puzzled = True

    @classmethod
    def unavailable(cls) -> str | None:
        if cls.is_puzzled:
            raise OSError("no folder to look in")
        return None


def test_a_backend_that_cannot_tell_whether_it_works_is_not_used(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not then: the next filesystem asks again."""
    install(puzzled=_here("Puzzled"), memory="headrace.backends.memory:MemoryBackend")
    with caplog.at_level("INFO", "headrace"):
        assert type(registry.backend_for(MemoryFileSystem())) is MemoryBackend
    assert [record.message for record in caplog.records] == [
        "backend 'puzzled' is not used for now: OSError: no folder to look in"
    ]
    monkeypatch.setattr(Puzzled, "is_puzzled", False)
    assert type(registry.backend_for(MemoryFileSystem())) is Puzzled
