"""fsspec's memory filesystem, and anything else that answers at once.

An op is a slice of a `bytes`-like object: nothing waits, so `start` performs all of it. Used in tests and
wherever ``memory://`` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from headrace.backends.abc import Defaults, InlineBackend
from headrace.threads import raise_if_of_a_handler

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.types import Int64Array, Ops


class MemoryBackend(InlineBackend):
    """Reads what `fsspec.implementations.memory.MemoryFileSystem` reads."""

    name: ClassVar[str] = "memory"
    rank: ClassVar[int] = 100
    holds_descriptors = False
    probes_rows = False
    defaults: ClassVar[Defaults] = Defaults(
        mode="lite", max_gap_bytes=0, max_op_bytes=8 << 20, io_parallelism=256
    )

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Only fsspec's own class."""
        from fsspec.implementations.memory import MemoryFileSystem  # noqa: PLC0415

        return type(target) is MemoryFileSystem

    @override
    def device(self, path: str) -> Hashable:
        """All of it is one device."""
        return ("memory",)

    @override
    def open(self, path: str, *, as_file: bool = False, **_options: Any) -> Any:
        """Return the stored file; FileNotFoundError or IsADirectoryError where fsspec raises them."""
        path = self.target._strip_protocol(path)  # noqa: SLF001
        found = self.target.store.get(path)
        if found is not None:
            return found
        if as_file and path in self.target.pseudo_dirs:
            raise IsADirectoryError(path)
        raise FileNotFoundError(path)

    @override
    def size(self, source: Any) -> int:
        """Bytes stored."""
        return len(source.getbuffer())

    @override
    def probe(self, source: Any, start: int, length: int) -> bytes | None:
        """Copy a few bytes."""
        with source.getbuffer() as stored:
            data = bytes(stored[start : start + length])
        return data if len(data) == length else None

    @override
    def read_one(self, source: Any, start: int, length: int) -> bytes:
        """Copy what there is."""
        with source.getbuffer() as stored:
            return bytes(stored[start : start + length])

    @override
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        """Copy each row out of the stored bytes."""
        for row in range(lo, hi):
            try:
                start, length = int(ops.start[row]), int(ops.length[row])
                with ops.sources[ops.file[row]].getbuffer() as stored:
                    ops.deliver(row, stored[start : start + length])
            except Exception as error:  # noqa: BLE001 - it is that row's answer
                raise_if_of_a_handler(error)
                ops.fail(row, error)
        return np.empty(0, np.int64)

    @override
    def finish(self, ops: Ops, rows: Int64Array) -> None:
        """Nothing is left to do: `start` did it all."""
