"""Requests and grants: the primary facts of the scheduler.

A `Request` is one logical read, however many ops it became; a `Grant` is a slice ``[lo, hi)`` of its ops
which a driver may perform. Everything else the core keeps (ops in flight, bytes in flight, reserved bytes,
the queue) is derived from these two and can be derived again: see `Hub.recover`.

Life of a request (the transition table is `LEGAL`)::

    QUEUED --grant--> RUNNING --last op--> COMPLETE --consume--> RETIRED
       |                 |                    |
       +----- fail / cancel / abandon --------+--> FAILED | CANCELLED --in-flight ops drained--> RETIRED

Threading: all under the hub's lock, but for `inbox`, whose `pop` is atomic.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from headrace.columns import offsets_of
from headrace.types import UNKNOWN_LENGTH, Int64Array, Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class State(enum.IntEnum):
    """Where a request is in its life; integers, because they are compared for every op."""

    QUEUED = 0
    RUNNING = 1
    COMPLETE = 2
    FAILED = 3
    CANCELLED = 4
    RETIRED = 5


LEGAL: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.COMPLETE, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.COMPLETE, State.FAILED, State.CANCELLED}),
    State.COMPLETE: frozenset({State.RETIRED, State.CANCELLED}),
    State.FAILED: frozenset({State.RETIRED}),
    State.CANCELLED: frozenset({State.RETIRED}),
    State.RETIRED: frozenset(),
}

DONE = (State.COMPLETE, State.RETIRED)
"""Of such a one nothing is left to perform, or to cancel for who waited for it."""

_LAST_WAITING = int(State.RUNNING)
"""Up to this one a request is still on its way."""


_DEFAULT_PRIORITY = Priority()


def stay_asleep(_request: Request) -> None:
    """Wake nobody: the owner polls."""


class Grant:
    """A slice ``[lo, hi)`` of a request's ops, admitted and not yet complete."""

    __slots__ = (
        "admitted_s", "arrived_before", "at_once", "bytes_left", "hi", "lo", "ops_left", "request",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        lo: int,
        hi: int,
        nbytes: int,
        now: float,
        *,
        arrived_before: int = 0,
        at_once: int = 0,
    ) -> None:
        self.request = request
        self.arrived_before = arrived_before  # bytes over the store's link, of all requests'
        self.at_once = at_once  # ops that the call which performs it has under way; 0: it is no call
        self.lo = lo
        self.hi = hi
        self.ops_left = hi - lo
        self.bytes_left = nbytes
        self.admitted_s = now

    def in_flight(self) -> tuple[int, int, int]:
        """Ops, bytes and calls of it that are in flight (I1): one op of each series, some of each call."""
        if self.at_once:
            return min(self.ops_left, self.at_once), self.bytes_left, 1
        request = self.request
        if request.step_bytes:
            series = -(-self.ops_left // request.series_ops)
            return series, min(self.bytes_left, series * request.step_bytes), 0
        return self.ops_left, self.bytes_left, 0

    @override
    def __repr__(self) -> str:
        return f"<Grant of request {self.request.seq}: ops [{self.lo}, {self.hi})>"


class Request:
    """One logical read: its ops' lengths, its priority, and how far it has come.

    Parameters
    ----------
    op_length
        ``int64[m]``, bytes of each op, in the order they shall be performed.
    result_bytes
        What the whole result occupies until it is consumed: the reservation of I2.
    priority, scan
        See `core.queue`.
    is_speculative
        Nobody waits for it (I7).
    is_nested
        It was started inside one of our own ops and runs on that op's permit (I1).
    on_wake
        Called under the hub's lock when a grant is in `inbox` or the request ended. It must not block.
    group
        Requests whose consumer needs all of them share a group (I2: siblings pass).
    unknown_bytes
        What an op of unknown length is charged until its answer is there.
    series_ops
        So many ops are performed one after the other; 1 where all of a grant are performed side by side.

    Attributes
    ----------
    step_bytes
        The longest op, which is what each series has in flight; 0 where there are no series.
    is_awaited
        Whether somebody waits for it: set by its driver before it is submitted, by `Scheduler.note_awaited`
        afterwards.
    """

    __slots__ = (
        "__weakref__",
        "cumulative",
        "error",
        "grants",
        "group",
        "inbox",
        "is_awaited",
        "is_nested",
        "is_speculative",
        "label",
        "n_ops",
        "next_op",
        "on_wake",
        "ops_done",
        "priority",
        "queue_ticket",
        "queued_s",
        "result_bytes",
        "scan",
        "seq",
        "series_ops",
        "state",
        "step_bytes",
    )

    def __init__(
        self,
        op_length: Int64Array | list[int],
        *,
        result_bytes: int,
        priority: Priority = _DEFAULT_PRIORITY,
        scan: Hashable = None,
        is_speculative: bool = False,
        is_nested: bool = False,
        on_wake: Callable[[Request], None] = stay_asleep,
        group: Hashable = None,
        unknown_bytes: int = 1 << 20,
        label: object = None,
        series_ops: int = 1,
    ) -> None:
        self.n_ops = len(op_length)
        self.series_ops = 1 if self.n_ops < 2 or is_nested else series_ops  # noqa: PLR2004 - one is no series
        self.step_bytes = int(np.max(op_length)) if self.series_ops > 1 else 0
        self.cumulative: list[int] | Int64Array
        if self.n_ops == 1:
            # The scalar form: one small read must not pay for an array.
            length = int(op_length[0])
            self.cumulative = [0, unknown_bytes if length == UNKNOWN_LENGTH else length]
        else:
            self.cumulative = offsets_of(np.asarray(op_length))
        self.result_bytes = result_bytes
        self.priority = priority
        self.scan = scan
        self.is_speculative = is_speculative
        self.is_nested = is_nested
        self.on_wake = on_wake
        self.group = group
        self.label = label
        self.is_awaited = False
        self.state = State.QUEUED
        self.error: BaseException | None = None
        self.seq = 0
        self.queue_ticket = 0
        self.queued_s: float | None = None
        self.next_op = 0
        self.ops_done = 0
        self.grants: list[Grant] = []
        self.inbox: list[Grant] = []  # a deque takes 760 bytes while it is empty

    @property
    def is_wanted(self) -> bool:
        """Whether it has not ended: somebody waits for it, or will take what it has."""
        return self.state <= State.COMPLETE

    @property
    def is_waiting(self) -> bool:
        """Whether it has ops which may be admitted now.

        Of a request in series a grant is a round: the next is admitted when that one is complete. Whoever
        performs it sleeps until then, and what was admitted meanwhile would be in flight in name only.
        """
        is_left = self.next_op < self.n_ops and self.state <= _LAST_WAITING
        return is_left and not (self.step_bytes and self.grants)

    @property
    def is_over(self) -> bool:
        """Whether its consumer need not wait any longer."""
        return self.state > _LAST_WAITING

    def bytes_between(self, lo: int, hi: int) -> int:
        """Bytes of the ops ``[lo, hi)``."""
        return int(self.cumulative[hi]) - int(self.cumulative[lo])

    def ops_within(self, room_bytes: int) -> int:
        """How many of the ops not yet admitted fit into `room_bytes` together."""
        floor = int(self.cumulative[self.next_op]) + max(room_bytes, 0)
        # Not by NumPy's `searchsorted`, which gives the GIL up: in a section, whose lock others wait for.
        return bisect_right(self.cumulative, floor) - 1 - self.next_op

    def mend(self) -> None:
        """Complete a grant, or the end of one, that an exception cut in two."""
        for grant in list(self.grants):
            if grant.ops_left == 0:
                grant.bytes_left = 0  # its driver may give it back once more
                self.grants.remove(grant)
                continue
            grant.bytes_left = max(grant.bytes_left, 0)
            if grant.hi > self.next_op:
                self.next_op = grant.hi
                if grant not in self.inbox:
                    self.inbox.append(grant)
        in_flight = sum(grant.ops_left for grant in self.grants)
        self.ops_done = self.next_op - in_flight
        if self.grants and self.state is State.QUEUED:
            self.state = State.RUNNING

    @override
    def __repr__(self) -> str:
        where = f"{self.ops_done}/{self.n_ops} ops"
        return f"<Request {self.seq} {self.state.name.lower()}: {where}, priority {tuple(self.priority)}>"
