"""The native stores of one filesystem: one for each bucket, and one for each version that is read a lot.

obstore's bulk reads take no ``If-Match``. So an object whose version must match gets a store of its own,
which sends that header with every request, once enough is read of it (`WORTH_OPS`): such a store costs five
milliseconds, a connection pool, and its first connections. The last `VERSIONS` of them are kept, and of the
stores of buckets the last `BUCKETS`.

obstore has one runtime in a process, and it hangs in a forked child: `is_forked` tells. So it is imported for
the first store and not before: who only asked for metadata may fork, and the children have it for themselves.

Where the library can make no store (it cannot parse a variable of the environment that no argument switches
off, or finds no certificates) a bucket is left to the wrapped filesystem. So it is, for some seconds, where
its options could not be translated just then (`is_over`).

Threading: all methods by any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from headrace.backends import _obstore_faults as faults
from headrace.backends._obstore_client import UNLIMITED_S, InexactError, is_over
from headrace.threads import after_fork_in_child
from headrace.types import TRY_TIMEOUT_S, UNKNOWN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends._obstore_client import Client, StoreOptions

K = TypeVar("K")
V = TypeVar("V")

WORTH_OPS = 64
"""Reads of one version, by however many open files, past which a store of its own pays."""

COUNTED = 1024
"""Versions without a store whose reads are counted: those read last."""

BUCKETS = 64
"""Stores of buckets kept, each with its connections: those used last. Over HTTP every host is a bucket."""

VERSIONS = 8
"""Stores of single versions kept; each holds as many connections as reads were under way at once."""

LOOKED_AT = 1024
"""Objects of a bucket of which it is known whether they are encoded: those read last."""

UNCLEAR = 8
"""So many objects of a bucket are asked in vain whether conditions are heeded; then none is any more."""

WARY_OPS = 320
"""After a fault so many ops in a row must succeed, each by itself, until bulk calls are trusted again.

Dozens of calls may then be under way before one of them meets the next fault: where one op in a hundred
fails, that would send too much again, and a smaller number would try it too often.
"""

_is_forked = False


@after_fork_in_child
def _note_fork() -> None:
    """In a forked child: the threads of obstore's runtime stayed with the parent, if it ever ran."""
    global _is_forked  # noqa: PLW0603
    _is_forked = _is_forked or "obstore" in sys.modules


def is_forked() -> bool:
    """Whether this process was forked from one that had obstore loaded, so that its calls would hang."""
    return _is_forked


def _find(kept: OrderedDict[K, V], name: K) -> V | None:
    """Return what is kept by a name, as used last; may be called without the lock."""
    found = kept.get(name)
    if found is not None:
        with contextlib.suppress(KeyError):  # let go of meanwhile
            kept.move_to_end(name)
    return found


def _keep(kept: OrderedDict[K, V], name: K, value: V, most: int) -> K | None:
    """Keep a value as used last, of so many; returns the name of the one that had to go."""
    kept[name] = value
    with contextlib.suppress(KeyError):  # let go of meanwhile, where nobody holds a lock
        kept.move_to_end(name)
        return kept.popitem(last=False)[0] if len(kept) > most else None
    return None


class BucketStore:
    """The native store of one bucket, and how far it is trusted."""

    __slots__ = (
        "__weakref__", "_encoded", "_looks", "_make", "_patient", "_unclear", "heeds_conditions", "options",
        "store", "wary_ops",
    )  # fmt: skip

    def __init__(self, options: StoreOptions, make: Callable[..., Any]) -> None:
        self.options = options
        self.store = make(options)
        self.wary_ops = 0
        self.heeds_conditions: bool | None = None
        """Whether its answers are of the version asked for; None: nobody has asked yet."""
        self._make = make
        self._patient: Any = None
        self._encoded: OrderedDict[str, bool] = OrderedDict()
        self._looks: dict[str, threading.Event] = {}
        self._unclear: set[str] = set()

    def store_for(self, length: int) -> Any:
        """Return the store for an op of so many bytes: one of unknown length may take as long as it takes."""
        if length != UNKNOWN_LENGTH:
            return self.store
        if self._patient is None:
            self._patient = self._make(self.options, is_patient=True)
        return self._patient

    def is_encoded(self, key: str) -> bool | None:
        """Whether answers of an object have an encoding; None where none was looked at lately."""
        return _find(self._encoded, key)

    def note_encoding(self, key: str, *, is_encoded: bool) -> None:
        """Note what an answer says of its encoding."""
        if self._encoded.get(key) is not is_encoded:
            _keep(self._encoded, key, is_encoded, LOOKED_AT)

    def begin_look(self, key: str) -> threading.Event | None:
        """Have the caller look at an answer of an object, until `end_look`; or return what to wait for."""
        mine = threading.Event()
        found = self._looks.setdefault(key, mine)
        return None if found is mine else found

    def end_look(self, key: str) -> None:
        """Let those go on that wait for what was seen."""
        self._looks.pop(key).set()

    def forget_encoding(self, key: str | None = None) -> None:
        """Forget it, of one object or of all."""
        if key is None:
            self._encoded.clear()
        else:
            self._encoded.pop(key, None)

    def may_ask_for_conditions(self, key: str) -> bool:
        """Whether an object may still tell if conditions are heeded."""
        return self.heeds_conditions is None and key not in self._unclear

    def note_unclear(self, key: str) -> None:
        """Note that an object did not tell; where `UNCLEAR` did not, none is asked any more."""
        self._unclear.add(key)
        if len(self._unclear) >= UNCLEAR:
            self.heeds_conditions = False

    def note(self, succeeded: int, *, has_failed: bool) -> None:
        """Count what came back. One failure costs a bulk call all its answers: after it ops go one by one."""
        self.wary_ops = WARY_OPS if has_failed else max(0, self.wary_ops - succeeded)


class Stores:
    """Makes and keeps native stores.

    Parameters
    ----------
    client
        What they are to be like.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.RLock()
        self._buckets: OrderedDict[str, BucketStore | InexactError] = OrderedDict()
        # Those that are read now, too, whether kept or not: with more of them each read would make its own.
        self._in_use: WeakValueDictionary[str, BucketStore] = WeakValueDictionary()
        self._versions: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self._counts: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self.try_timeout_s = TRY_TIMEOUT_S

    def bucket(self, name: str) -> BucketStore | None:
        """Return the store of a bucket; None where its reads have no exact translation."""
        found = _find(self._buckets, name)
        if found is None or is_over(found):
            with self._lock:
                if self._buckets.get(name) is found:  # else another thread has made it meanwhile
                    self._buckets.pop(name, None)
                found = self._buckets.get(name) or self._in_use.get(name) or self._make_bucket(name)
                _keep(self._buckets, name, found, BUCKETS)
        return None if isinstance(found, InexactError) else found

    def left_out(self) -> str | None:
        """Say which bucket was left to the wrapped filesystem last, and why; None: none that is known."""
        with self._lock:
            kept = list(self._buckets.items())
        left = [f"{name} is read by the filesystem itself: {why}" for name, why in kept if _is_refusal(why)]
        return left[-1] if left else None

    def _make_bucket(self, name: str) -> BucketStore | InexactError:
        try:
            made = self._in_use[name] = BucketStore(self._client.store_options(name), self._make)
        except InexactError as error:
            return error
        return made

    def version(self, bucket: BucketStore, key: str, etag: str, ops: int, heeds: Callable[[], bool]) -> Any:
        """Return a store that reads this version and no other; None while too little of it was read.

        None, too, where the server does not heed conditions, as `heeds` says, and where none can be made: its
        answers must be looked at.

        One that is there is found without the lock: threads that read side by side would wait for it, and
        each that got it for the GIL, one turn of a busy thread after the other.
        """
        name = (bucket.options.bucket, key, etag)
        found = _find(self._versions, name)
        if found is not None:
            return found
        with self._lock:
            is_worth_it = self._count(name, ops) >= WORTH_OPS
        if not is_worth_it or not heeds():
            return None
        with self._lock:
            found = self._versions.get(name)
            if found is None:
                try:
                    found = self._make(bucket.options, {"If-Match": etag})
                except InexactError:
                    return None
                gone = _keep(self._versions, name, found, VERSIONS)
                if gone is not None:
                    # With more of them read by turns each would else be made anew for every read.
                    self._counts.pop(gone, None)
            return found

    def _count(self, name: tuple[str, str, str], ops: int) -> int:
        """Count reads of a version; returns how many there were."""
        count = self._counts.get(name, 0) + ops
        _keep(self._counts, name, count, COUNTED)
        return count

    def forget(self, bucket: str) -> None:
        """Make the stores of a bucket again when they are next wanted, with the credentials of then."""
        with self._lock:
            self._buckets.pop(bucket, None)
            self._in_use.pop(bucket, None)
            for name in self._versions_of(bucket):
                del self._versions[name]

    def _versions_of(self, bucket: str) -> list[tuple[str, str, str]]:
        # A copy first: another thread may have one moved meanwhile.
        return [name for name in list(self._versions) if name[0] == bucket]

    def forget_encodings(self) -> None:
        """Forget which objects are encoded: they may be others by now."""
        with self._lock:
            in_use = list(self._in_use.values())
        for bucket in in_use:
            bucket.forget_encoding()

    def give_up(self, bucket: str, why: str) -> None:
        """Leave a bucket to the wrapped filesystem from now on."""
        with self._lock:
            self._in_use.pop(bucket, None)
            _keep(self._buckets, bucket, InexactError(why), BUCKETS)

    def _make(
        self,
        options: StoreOptions,
        more_headers: dict[str, str] | None = None,
        *,
        is_patient: bool = False,
    ) -> Any:
        """Make one; a patient one lets an answer take as long as it takes, while something comes of it."""
        most_s = UNLIMITED_S if is_patient else self.try_timeout_s
        timeout = timedelta(seconds=min(most_s, options.timeout_s or most_s))
        client = {
            "timeout": timeout,
            "read_timeout": timedelta(seconds=self.try_timeout_s),
            "default_headers": {**options.headers, **(more_headers or {})},
            **options.client,
        }
        # Its own retries would hide from the scheduler that the store asks for less.
        retry = {"max_retries": 0, "retry_timeout": timeout}
        try:
            return self._client.make(options, client_options=client, retry_config=retry)
        except Exception as error:
            if faults.is_of_settings(error) or (faults.is_of_certificates(error) and _may_open_files()):
                why = f"obstore can make no store here ({faults.why_not_made(error)})"
                raise InexactError(why) from error
            # Its options translate: what is missing is the process's, descriptors mostly.
            msg = f"no client for the store could be made ({type(error).__name__})"
            raise faults.StoreError(errno.EIO, msg, options.bucket) from None


def _is_refusal(found: BucketStore | InexactError) -> bool:
    return isinstance(found, InexactError)


def _may_open_files() -> bool:
    """Whether descriptors are left: without, the library finds no certificates where there are some."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    return True
