"""The native engine, one request for each op, awaited on a loop of headrace's: for hedging.

A bulk call answers when its last op does, so none of them can be late by itself, and asking for all of them
twice would double the requests of every third call. What it costs is the point of bulk calls: each answer
takes the GIL. It is a store of its own to the scheduler, with a window for requests, not for calls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from headrace.backends.abc import AsyncBackend, Defaults

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from headrace.backends.abc import PathSource
    from headrace.backends.obstore import ObstoreBackend
    from headrace.types import Ops, Verdict


class SingleReads(AsyncBackend):
    """Reads what an `ObstoreBackend` reads, op by op.

    Parameters
    ----------
    bulk
        Has the stores, and the wrapped filesystem for what they cannot answer.
    """

    name: ClassVar[str] = "obstore"
    checks_versions = True

    def __init__(self, bulk: ObstoreBackend) -> None:
        super().__init__(bulk.target)
        self._bulk = bulk
        self.is_s3fs, self.are_versions_unique = bulk.is_s3fs, bulk.are_versions_unique
        self.defaults: Defaults = replace(bulk.defaults, io_parallelism=128, window_ops=64)  # type: ignore[misc]

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Nothing by itself: the bulk backend is asked."""
        return False

    @property
    @override
    def asked_loop(self) -> Any:
        """The loop of what answers for bulk reads, too."""
        return self._bulk.asked_loop

    @override
    def bind(self, loop: Any) -> None:
        """Nothing to prepare: requests are made on threads of the engine's."""

    @override
    def device(self, path: str) -> Hashable:
        """Name the store, apart from its bulk reads."""
        return (self._bulk.device(path), "singly")

    @override
    def open(self, path: str, **options: Any) -> PathSource:
        """Return the object's name."""
        return self._bulk.open(path, **options)

    @override
    def open_end(self, path: str, nbytes: int) -> PathSource | None:
        """Open the end of an object, where the bulk backend does."""
        return self._bulk.open_end(path, nbytes)

    @override
    def version_of(self, info: Mapping[str, Any]) -> str | None:
        """Return the version as bulk reads take it."""
        return self._bulk.version_of(info)

    @override
    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return what the bulk backend's filesystem says."""
        return self._bulk.info(path, **options)

    @override
    async def read(self, ops: Ops, row: int) -> None:
        """Perform op `row` by a request of its own."""
        await self._bulk.read(ops, row)

    @override
    def left_out(self) -> str | None:
        """Say what bulk reads leave out."""
        return self._bulk.left_out()

    @override
    def forget(self) -> None:
        """Forget what bulk reads noted."""
        self._bulk.forget()

    @override
    def kept_bytes(self, ops: Ops, row: int) -> int:
        """Count as bulk reads do."""
        return self._bulk.kept_bytes(ops, row)

    @override
    def verdict(self, error: BaseException) -> Verdict:
        """Judge as bulk reads are judged."""
        return self._bulk.verdict(error)
