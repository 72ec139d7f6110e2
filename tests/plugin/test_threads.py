"""What is asked of threads and of their locks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from headrace.threads import call_if_free, call_locked, forget_with, is_python_thread


class Interrupted:
    """A lock around whose steps a signal's handler raises."""

    def __init__(self, *, at: str) -> None:
        self.lock = threading.RLock()
        self._is_owned = self.lock._is_owned  # type: ignore[attr-defined]
        self.at = at

    def acquire(self, *, blocking: bool = True) -> bool:
        is_free = self.lock.acquire(blocking=blocking)
        if self.at == "acquire":
            raise KeyboardInterrupt
        return is_free

    def release(self) -> None:
        self.lock.release()
        if self.at == "release":
            msg = "from a handler"
            raise RuntimeError(msg)


def test_a_handler_after_the_lock_was_acquired_leaves_it_free() -> None:
    lock = Interrupted(at="acquire")
    with pytest.raises(KeyboardInterrupt):
        call_if_free(lock, int)
    assert not lock._is_owned()


def test_what_a_handler_raises_after_the_release_comes_out() -> None:
    lock = Interrupted(at="release")
    with pytest.raises(RuntimeError, match="handler"):
        call_if_free(lock, int)
    assert not lock._is_owned()


def test_what_is_called_may_raise_or_let_go() -> None:
    lock = threading.RLock()
    with pytest.raises(ZeroDivisionError):
        call_if_free(lock, divmod, 1, 0)
    assert call_if_free(lock, divmod, 7, 2) == (3, 1)
    assert call_locked(lock, lock.acquire, lock.release) is None
    assert not lock._is_owned()  # type: ignore[attr-defined]


def test_nothing_is_called_with_a_lock_that_somebody_has() -> None:
    lock = threading.RLock()
    with lock, ThreadPoolExecutor(1) as threads:
        assert call_if_free(lock, int) is None  # by this thread
        assert threads.submit(call_if_free, lock, int).result() is None
        take = partial(lock.acquire, blocking=False)
        assert threads.submit(call_locked, lock, take, int).result() is None
        assert lock._is_owned()  # type: ignore[attr-defined]


class Equal:
    """Equal to all of its kind, as fsspec's files of one object are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __hash__(self) -> int:
        return 0


def test_what_is_known_of_a_thing_goes_with_it_and_not_with_its_equal() -> None:
    first, second = Equal(), Equal()
    known: dict[int, object] = {}
    for one in (first, second, second):
        known[id(one)] = forget_with(one, known)
    kept = id(second)
    assert known.keys() == {id(first), kept}
    del first
    assert known.keys() == {kept}
    del one, second
    assert not known


def test_threads_of_others_are_told_from_pythons() -> None:
    import _thread

    found: list[bool] = []
    is_over = threading.Event()

    def look() -> None:
        found.append(is_python_thread())
        threading.current_thread()  # notes a dummy for it
        found.append(is_python_thread())
        is_over.set()

    _thread.start_new_thread(look, ())
    assert is_over.wait(10)
    assert found == [False, False]
    assert is_python_thread()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(is_python_thread).result()
