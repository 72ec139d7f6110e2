"""A filesystem of named blobs, ``headracedemo://``, and the headrace backend that reads it.

The blobs live in a dictionary of this process (`DemoFileSystem.blobs`).  `DemoBackend` is a
`ThreadedBackend`: it performs one op at a time, on a thread headrace gives it, straight from the
blob and not through fsspec.  It counts the ops it performed, so that a test can tell that reads
came through it.

Only the public modules of headrace are used: `headrace.backends.abc` and `headrace.types`.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fsspec.spec import AbstractFileSystem

from headrace.backends.abc import Defaults, ThreadedBackend
from headrace.types import UNKNOWN_LENGTH, Ops

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["DemoBackend", "DemoFileSystem"]


class DemoFileSystem(AbstractFileSystem):
    """Blobs by name, in the memory of this process; a slash makes no directory."""

    protocol = "headracedemo"
    blobs: ClassVar[dict[str, bytes]] = {}

    def read_blob(self, path: str) -> bytes:
        """Return a blob; FileNotFoundError where there is none."""
        name = self._strip_protocol(path)
        if name not in self.blobs:
            raise FileNotFoundError(path)
        return self.blobs[name]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describe one blob, or the root."""
        name = self._strip_protocol(path)
        if not name:
            return {"name": "", "size": 0, "type": "directory"}
        return {"name": name, "size": len(self.read_blob(name)), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List all blobs."""
        name = self._strip_protocol(path)
        names = sorted(self.blobs) if not name else [name]
        return [self.info(name) for name in names] if detail else names

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Store one blob."""
        name = self._strip_protocol(path)
        if mode == "create" and name in self.blobs:
            raise FileExistsError(path)
        self.blobs[name] = bytes(value)

    def rm_file(self, path: str) -> None:
        """Forget one blob."""
        self.read_blob(path)
        del self.blobs[self._strip_protocol(path)]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes between bounds, as a slice understands them."""
        return self.read_blob(path)[start:end]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        if mode != "rb":
            raise NotImplementedError(mode)
        return io.BytesIO(self.read_blob(path))


@dataclass(frozen=True, slots=True)
class Blob:
    """An open source: the path it was opened by, and its bytes."""

    path: str
    data: bytes


class DemoBackend(ThreadedBackend):
    """Reads the blobs of a `DemoFileSystem`."""

    name: ClassVar[str] = "demo"
    rank: ClassVar[int] = 60
    defaults: ClassVar[Defaults] = Defaults(
        mode="standard", max_gap_bytes=16, max_op_bytes=1 << 20, io_parallelism=4
    )
    ops_performed: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def serves(cls, target: Any) -> bool:
        """Only our own filesystem."""
        return isinstance(target, DemoFileSystem)

    def device(self, path: str) -> Hashable:
        """All blobs are one store."""
        return ("headracedemo",)

    def open(self, path: str, **_: Any) -> Blob:
        """Return the blob; FileNotFoundError where there is none."""
        return Blob(path, self.target.read_blob(path))

    def size(self, source: Blob) -> int:
        """Bytes of a blob."""
        return len(source.data)

    def read(self, ops: Ops, row: int) -> None:
        """Perform op `row`."""
        with self._lock:
            type(self).ops_performed += 1
        data = ops.sources[ops.file[row]].data
        start, length = int(ops.start[row]), int(ops.length[row])
        end = None if length == UNKNOWN_LENGTH else start + length
        ops.deliver(row, data[start:end])
