"""An `ObjectServer` in a process of its own, which busy Python threads of this one do not slow down.

The child is started anew (never forked) and obeys one call at a time: pickled on its standard input, answered
on its standard output. It ends with its standard input, so it does not outlive a parent that is killed, and
with a call that is interrupted, after which nobody knows whose answer is next.

Threading: one thread at a time.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from headrace.testing._serving import new_secret, storage_options
from headrace.testing.object_server import ObjectServer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from headrace.testing._faults import Faults
    from headrace.testing._serving import ServedRequest


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """What an `ObjectServer` has counted; see its properties of the same names."""

    request_count: int
    in_progress: int
    most_in_progress: int
    open_connections: int
    connections_made: int


class ObjectServerProcess:
    """The same server, faults and log as `ObjectServer`, without scripts, as a context manager.

    Parameters
    ----------
    faults, seed, access_key_ids
        See `ObjectServer`.

    Raises
    ------
    RuntimeError
        From any call: the server's process has ended.
    """

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        seed: int = 0,
        access_key_ids: Iterable[str] | None = None,
    ) -> None:
        known = None if access_key_ids is None else list(access_key_ids)
        self._options = {"faults": faults, "seed": seed, "access_key_ids": known}
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._secret = new_secret()

    def __enter__(self) -> Self:
        """Start it, and return once it listens."""
        code = f"from {__name__} import serve; serve()"
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._url = self._exchange(self._options)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Reset every connection and end the process; may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError), process:  # waits for its end
            if process.stdin is not None:
                pickle.dump(None, process.stdin)  # a forked child of ours may keep the pipe open
                process.stdin.close()

    @property
    def url(self) -> str:
        """The endpoint, such as ``http://127.0.0.1:39921``."""
        return self._url

    def storage_options(self, access_key_id: str = "test-key") -> dict[str, Any]:
        """Return options with which s3fs reaches this server as `access_key_id`."""
        return storage_options(self._url, access_key_id, self._secret)

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object, make its bucket if need be, and return its ETag."""
        etag: str = self._call("put", bucket, key, data)
        return etag

    def replace(self, bucket: str, key: str, data: bytes) -> str:
        """Store another version of an object; KeyError if it is not there."""
        etag: str = self._call("replace", bucket, key, data)
        return etag

    def put_folder(self, bucket: str, folder: str | Path) -> None:
        """Serve the files of a folder, from disk, under their paths in it."""
        self._call("put_folder", bucket, folder)

    def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket, unless it is there."""
        self._call("create_bucket", bucket)

    def set_faults(self, faults: Faults) -> None:
        """Say what goes wrong from now on."""
        self._call("__setattr__", "faults", faults)

    def expire(self, access_key_id: str, status: int = 400) -> None:
        """Answer requests signed by this key with ExpiredToken."""
        self._call("expire", access_key_id, status)

    def renew(self, access_key_id: str) -> None:
        """Let an expired key ask again."""
        self._call("renew", access_key_id)

    def stop_listening(self) -> None:
        """Refuse new connections from now on; those that are open stay."""
        self._call("stop_listening")

    def listen_again(self) -> None:
        """Take connections again, on the same port."""
        self._call("listen_again")

    def drop_connections(self) -> None:
        """Reset every open connection."""
        self._call("drop_connections")

    @property
    def requests(self) -> list[ServedRequest]:
        """The log; its times compare with each other and with this process's `time.monotonic` on Linux."""
        log: list[ServedRequest] = self._call("__getattribute__", "requests")
        return log

    @property
    def counts(self) -> ServerCounts:
        """What was counted until now."""
        names = ServerCounts.__slots__
        return ServerCounts(*(self._call("__getattribute__", name) for name in names))

    def forget(self) -> None:
        """Empty the log and start the high-water mark and the count of connections made anew."""
        self._call("forget")

    def _call(self, name: str, *args: Any) -> Any:
        return self._exchange((name, args))

    def _exchange(self, said: Any) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the server does not run")
        words = pickle.dumps(said)
        try:
            process.stdin.write(words)
            process.stdin.flush()
            is_error, answered = pickle.load(process.stdout)  # noqa: S301 - from our own child
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the server's process has ended, status {process.poll()}") from error
        except BaseException:
            # Its next answer would be this call's, or it takes the next call for the rest of this one.
            process.kill()
            process.wait()
            raise
        if is_error:
            raise answered
        return answered


def serve() -> None:
    """Be the child: make a server and do what standard input says, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Nothing of a long log is garbage, and looking through it would hold up answers for a tenth of a second.
    gc.disable()
    said, answers = sys.stdin.buffer, sys.stdout.buffer
    with ObjectServer(**pickle.load(said)) as server, contextlib.suppress(EOFError):  # noqa: S301
        _answer(answers, server.url)
        for name, args in iter(partial(pickle.load, said), None):
            try:
                answered = getattr(server, name)(*args)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                _answer(answers, error, is_error=True)
            else:
                _answer(answers, answered)


def _answer(answers: BinaryIO, said: Any, *, is_error: bool = False) -> None:
    pickle.dump((is_error, said), answers)
    answers.flush()
