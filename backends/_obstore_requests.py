"""One request of obstore's: which range of which version it asks for, and where its answer goes.

Long ops are copied as they come. What arrived before one broke is noted in ``ops.state`` (`Progress`), and
the next attempt asks for the rest, of the same version; where answers tell none, or a weak one, it starts
again. `headrace.backends._s3fs` notes the same there, so that either client goes on where the other
stopped.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends.abc import take_up
from headrace.types import UNKNOWN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends._obstore_faults import StoreError
    from headrace.backends.obstore import ObjectSource
    from headrace.types import Int64Array, Ops

CHUNK_BYTES = 1 << 20
"""Longer ops are copied piece by piece."""


class Progress(dict[int, int]):
    """Bytes of long ops that came before they broke, by row, and the ops that the store refused."""

    def __init__(self, done: dict[int, int]) -> None:
        super().__init__(done)
        self.refused: dict[int, StoreError] = {}
        """To be asked for through the wrapped filesystem, whose error tells Retry-After."""

    def note(self, rows: list[int], fault: StoreError) -> None:
        """Take note of the fault that ops met."""
        if fault.is_refusal:
            self.refused.update(dict.fromkeys(rows, fault))


def note_answer(source: ObjectSource, meta: Any) -> str | None:
    """Check the version that an answer is of, and have its source know it and the size; returns it."""
    etag: str | None = meta["e_tag"]
    check_version(source, etag)
    source.size = int(meta["size"])
    return etag


def check_version(source: ObjectSource, etag: str | None) -> None:
    """Have the reads of an open file be of one version: that of its opening, or that the first one met."""
    if source.is_file or source.etag is not None:
        source.meet(etag)


def range_of(source: ObjectSource) -> tuple[int, int | None] | None:
    """Return start and end of an op of unknown length, where obstore understands its bounds."""
    start, end = source.bounds
    if start is None and end is None:
        return 0, None
    return (start, end) if start is not None and end is not None and 0 <= start < end else None


def options_of(ops: Ops, row: int, source: ObjectSource) -> Any:
    """Return the options of one request: the range that is still to be read, and the version."""
    if source.is_end:
        return {"range": {"suffix": -(source.bounds[0] or 0)}}
    start, end = span_of(ops, row, source)  # an end of None is that of the object
    options: dict[str, Any] = {} if end is None else {"range": (start, end)}
    if source.condition:
        options["if_match"] = source.condition
    return options


def span_of(ops: Ops, row: int, source: ObjectSource) -> tuple[int, int | None]:
    """Return start and end of what is still to be read of an op."""
    start, length = int(ops.start[row]), int(ops.length[row])
    if length == UNKNOWN_LENGTH:
        return range_of(source) or (0, None)
    done = take_up(ops, row) or 0 if length > CHUNK_BYTES else 0
    return start + done, start + length


async def receive(
    store: Any, source: ObjectSource, ops: Ops, row: int, is_decoded: Callable[[Any], bool]
) -> bool:
    """Read one op by one request; False where its answer is one that `is_decoded` names."""
    import obstore  # noqa: PLC0415

    answer = await obstore.get_async(store, source.key, options=options_of(ops, row, source))
    if is_decoded(answer):
        return False
    etag = note_answer(source, answer.meta)
    if ops.length[row] <= CHUNK_BYTES:
        ops.deliver(row, memoryview(await answer.bytes_async()))
        return True
    async for chunk in answer.stream(CHUNK_BYTES):
        take_chunk(ops, row, source, chunk, etag)
    ops.got[row] = progress_of(ops).get(row, 0)
    return True


def deliver_all(ops: Ops, rows: Int64Array, found: list[Any]) -> None:
    """Copy short answers into the buffer, none longer than asked (I9)."""
    buffer = ops.buffer.data
    got = []
    for data, dest, length in zip(found, ops.dest[rows].tolist(), ops.length[rows].tolist(), strict=True):
        n = min(len(data), length)
        buffer[dest : dest + n] = memoryview(data)[:n]
        got.append(n)
    ops.got[rows] = got


_making = threading.RLock()


def progress_of(ops: Ops) -> Progress:
    """Return what earlier attempts left behind; `_s3fs` goes on from the bytes.

    It is one for all calls of a request, whichever thread asks first. One op has one thread at a time, and
    the lock, which all reads have in common, would only have readers wait for each other's turns of the GIL.
    """
    if isinstance(ops.state, Progress):
        return ops.state
    with contextlib.nullcontext() if len(ops) == 1 else _making:
        if not isinstance(ops.state, Progress):
            ops.state = Progress(ops.state or {})
        progress: Progress = ops.state
        return progress


def take_chunk(ops: Ops, row: int, source: ObjectSource, chunk: Any, etag: str | None) -> None:
    """Copy a piece of a long op; what is left of it when it breaks is read of the same version."""
    progress = progress_of(ops)
    dest, length, done = int(ops.dest[row]), int(ops.length[row]), progress.get(row, 0)
    n = min(len(chunk), length - done)
    ops.buffer[dest + done : dest + done + n] = np.frombuffer(chunk, np.uint8, n)
    progress[row] = done + n
    source.meet(etag)  # another op's, or the rest of this one would be of another version


def take(ops: Ops, row: int, source: ObjectSource, answer: Any) -> None:
    """Take an answer, if it is of the right version: a long one as it comes."""
    etag = note_answer(source, answer.meta)
    if ops.length[row] > CHUNK_BYTES:
        for chunk in answer.stream(CHUNK_BYTES):
            take_chunk(ops, row, source, chunk, etag)
        ops.got[row] = progress_of(ops).get(row, 0)
    else:
        ops.deliver(row, memoryview(answer.bytes()))
