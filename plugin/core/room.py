"""What may be in flight to one device or store, what is, and what fits beside it (I1).

Limits hold side by side, and a device need not have them all:

* *ops*: so many in flight, and so many in one slice;
* the *window*, bytes of a device or requests of a store, as `core.window` found it. Its last part is kept for
  reads of a more urgent base than all in flight (`URGENT_SHARE`);
* the *link* to a store: the bytes it brings before an attempt runs out of time (`core.link`);
* *uploads*: what is written to a store takes its part of the window (`core.uploads`).

The process's own limit of ops is the hub's, which passes what it leaves.

Progress (I1): with nothing in flight one op of demand fits however large it is. Speculation has a part of
each limit (`SPECULATIVE_SHARE`), and need not go on: what is wanted after all is demand then.

The ops of a slice are in flight side by side, or, where the request says so, in *series*: in each some ops
one after the other, which take the room of one. So a long slice costs its driver one turn, and keeps the
device's queue as short as a few ops do.

Threading: all methods under the hub's lock, except `fits` and the limits as they are now, which only look at
numbers. No clock, no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.admission import SPECULATIVE_SHARE
from headrace.core.uploads import Uploads
from headrace.core.window import URGENT_SHARE

if TYPE_CHECKING:
    from headrace.core.link import Link
    from headrace.core.request import Request
    from headrace.core.window import Window

WHOLE_SHARE = 8
"""Whole grants wait for room only while so many of them fit the window."""

SHORT_SHARE = 64
"""An op of one part in so many of a link's limit is admitted in spite of it, beside fewer ops."""

LATELY_S = 1.0
"""What came no longer ago may go on: urgent reads, or a kernel's readahead, some windows of a slow disk."""

NOBODY = (-math.inf, -math.inf)
"""The base priority, and the time, of a read for which a kernel reads ahead, where there is none."""

TURN_BYTES = 1 << 20
"""What an op counts as in the turns of scans, at the least, where ops are limited and not bytes.

A store's request takes a place however little it reads, and of a whole file nobody knows how much.
"""


@dataclass(frozen=True, slots=True)
class Calls:
    """How slices are performed where each is a call on a thread of its own: few calls, long ones.

    Attributes
    ----------
    most
        Calls under way.
    at_once
        Ops that a call has under way at a time: so many of it are in flight. A shorter one saves nothing.
    least_bytes, most_bytes
        What is read by a call of several ops, at the most: the former, where that is more than its share of
        the request.
    """

    most: int
    at_once: int = 1
    least_bytes: int = 1 << 20
    most_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device bears.

    Attributes
    ----------
    window
        What is allowed in flight, or None for no such limit.
    counts_ops
        Whether the window is one of requests; of bytes otherwise.
    max_in_flight_ops
        Ops allowed in flight.
    max_grant_ops
        The largest slice: 1 where every op is performed by a thread or task of its own.
    calls
        Where each slice is performed by a call, how many and how long ones.
    link
        Bytes allowed in flight beside a window of requests, or None for no such limit.
    """

    window: Window | None = None
    counts_ops: bool = False
    max_in_flight_ops: int = 128
    max_grant_ops: int = 1 << 30
    calls: Calls | None = None
    link: Link | None = None


class Room:
    """What is in flight to one device, and how much may join it.

    Attributes
    ----------
    in_flight_ops, in_flight_bytes, in_flight_calls
        Of all requests but nested ones, whose parents' ops are counted.
    in_flight_bases
        The ops of each base priority.
    turn_bytes
        What an op counts as in the turns of scans, at the least.
    is_held_back
        Whether it was the window that cut the last slice: then its controller learns of the device, not of
        demand.
    """

    __slots__ = (
        "_ahead", "_urgent_base", "_urgent_s", "calls", "counts_ops", "in_flight_bases", "in_flight_bytes",
        "in_flight_calls", "in_flight_ops", "is_held_back", "link", "max_grant_ops", "max_in_flight_ops",
        "turn_bytes", "uploads", "window",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self.window = limits.window
        self.counts_ops = limits.counts_ops
        self.turn_bytes = TURN_BYTES if limits.window is None or limits.counts_ops else 0
        self.max_in_flight_ops = limits.max_in_flight_ops
        self.max_grant_ops = limits.max_grant_ops
        self.calls = limits.calls
        self.link = limits.link
        self.uploads = Uploads()
        self.is_held_back = False
        self._ahead: tuple[float, float] = NOBODY
        self._urgent_base = self._urgent_s = -math.inf
        self.clear()

    def clear(self) -> None:
        """Forget what is in flight: it is counted again."""
        self.in_flight_ops = self.in_flight_bytes = self.in_flight_calls = 0
        self.in_flight_bases: dict[int, int] = {}
        self.uploads.recount()

    def count(self, base: int, ops: int, nbytes: int, calls: int = 0) -> None:
        """Add ops of a base priority, of so many bytes together, to what is in flight, or take them away."""
        self.in_flight_ops += ops
        self.in_flight_bytes += nbytes
        self.in_flight_calls += calls
        left = self.in_flight_bases.get(base, 0) + ops
        if left:
            self.in_flight_bases[base] = left
        else:
            self.in_flight_bases.pop(base, None)

    # -- the limits as they are now

    @property
    def limit_ops(self) -> int:
        """Ops that may be in flight now, as far as their number is limited."""
        if self.window is None or not self.counts_ops:
            return self.max_in_flight_ops
        return min(self.uploads.left_of(self.window.limit), self.max_in_flight_ops)

    @property
    def limit_bytes(self) -> int:
        """Bytes that may be in flight now, as far as they are limited."""
        return 1 << 62 if self.window is None or self.counts_ops else self.window.limit

    @property
    def expects_urgent(self) -> bool:
        """Whether reads come that are more urgent than others, and wait for what is in flight."""
        return self.window is not None and self.window.expects_urgent

    def expects_before(self, base: int, now: float) -> bool:
        """Whether such reads came just now that are more urgent than those of a base priority.

        What the kernel reads ahead is left as soon as one comes, so it may be taken up again soon.
        """
        return self._urgent_base < base and self.has_urgent(now)

    # -- what fits

    def slice_ops(self, request: Request) -> int:
        """Return the ops of a request's next slice, if there is room for it."""
        calls, left_ops = self.calls, request.n_ops - request.next_op
        if calls is None:
            return min(self.max_grant_ops, left_ops)
        limit = self.limit_ops
        share = min(max((limit - limit // URGENT_SHARE) // calls.at_once, 1), calls.most)
        even = -(-request.n_ops // share)
        even_bytes = request.bytes_between(0, request.n_ops) * even // request.n_ops
        nbytes = min(max(even_bytes, calls.least_bytes), calls.most_bytes)
        ops = min(max(even, calls.at_once), self.max_grant_ops, left_ops)
        if request.bytes_between(request.next_op, request.next_op + ops) > nbytes:
            ops = max(request.ops_within(nbytes), 1)
        return ops

    def fits(self, ops: int, nbytes: int) -> bool:
        """Whether ops of so many bytes together, which are performed at once, find room."""
        window = self.window
        if self.in_flight_ops + ops > self.max_in_flight_ops:
            return False
        if window is None:
            return True
        filled = self.in_flight_ops + ops if self.counts_ops else self.in_flight_bytes + nbytes
        return filled <= window.limit

    def grantable(self, request: Request, process_ops: int) -> int:
        """Return how many of a request's next ops find room, where the process admits `process_ops` more."""
        self.is_held_back = False
        left_ops = request.n_ops - request.next_op
        part = SPECULATIVE_SHARE if request.is_speculative else 1
        free_ops = self.max_in_flight_ops // part - self.in_flight_ops
        if request.step_bytes:
            return self._grantable_series(request, left_ops, min(free_ops, process_ops))
        if self.calls is not None:
            return self._grantable_call(self.calls, request, free_ops, process_ops)
        room_ops = min(self.max_grant_ops, left_ops, process_ops)
        if self.window is None or not self.counts_ops:
            room_ops = min(room_ops, free_ops)
        if self.link is not None:
            room_ops = self._carried(self.link, request, room_ops)
        if room_ops <= 0 or self.window is None:
            return room_ops
        return self._in_window(self.window, request, room_ops, free_ops)

    def _in_window(self, window: Window, request: Request, room_ops: int, free_ops: int) -> int:
        """Return how many of so many ops the window admits."""
        share = self._window_share(window, request)
        if self.counts_ops:
            # Its window ends where the limit of ops does: either holds demand back.
            fitting = min(share - self.in_flight_ops, free_ops)
        else:
            fitting = request.ops_within(share - self.in_flight_bytes)
        # Only what the window itself holds back tells its controller anything about the device.
        self.is_held_back = fitting < room_ops and not request.is_speculative
        if fitting <= 0 and self._must_go_on(request):
            return 1  # progress, I1
        return min(room_ops, fitting)

    def _grantable_call(self, calls: Calls, request: Request, free_ops: int, process_ops: int) -> int:
        """Return the ops of the next call, if there is room for what it has under way."""
        if self.in_flight_calls >= calls.most:
            return 0
        ops = self.slice_ops(request)
        if self.link is not None:
            ops = self._carried(self.link, request, ops)
        if ops <= 0:
            return ops
        wanted = min(ops, calls.at_once)
        share = limit = free_ops
        if self.window is not None:
            limit = self._window_share(self.window, request)
            share = min(limit - self.in_flight_ops, free_ops)
            self.is_held_back = share < wanted and not request.is_speculative
        fitting = min(share, process_ops)
        if fitting >= wanted:
            return ops
        if fitting <= 0:
            return 1 if share <= 0 < process_ops and self._must_go_on(request) else 0  # progress, I1
        # Cut short it would stay so, call after call; but a small window must be used.
        least = min(wanted, max(limit // WHOLE_SHARE, 1)) if self.in_flight_ops else 1
        return 0 if share < least else fitting

    def _grantable_series(self, request: Request, left_ops: int, free_ops: int) -> int:
        """Return the ops of so many series as there is room for one op of each."""
        most = min(self.max_grant_ops, left_ops)
        room = min(free_ops, -(-most // request.series_ops))
        if self.window is not None and room > 0:
            step, used = (
                (1, self.in_flight_ops) if self.counts_ops else (request.step_bytes, self.in_flight_bytes)
            )
            share = self._window_share(self.window, request)
            fitting = max((share - used) // step, 0)
            self.is_held_back = fitting < room and not request.is_speculative
            room = min(room, max(fitting, 1) if self._must_go_on(request) else fitting)  # progress, I1
        return min(room * request.series_ops, most)

    def _carried(self, link: Link, request: Request, ops: int) -> int:
        """Return how many of so many ops the link brings in time; it tells the window nothing."""
        limit = link.limit_bytes
        left = (limit if self._is_urgent(request) else self._share(request, limit)) - self.in_flight_bytes
        if self.in_flight_ops < SHORT_SHARE:
            # It would wait for long ops, which it hardly slows down.
            left = max(left, limit // SHORT_SHARE)
        if request.bytes_between(request.next_op, request.next_op + max(ops, 0)) <= left:
            return ops
        fitting = min(ops, request.ops_within(left))
        return min(ops, 1) if fitting <= 0 and self._must_go_on(request) else fitting  # progress, I1

    def _must_go_on(self, request: Request) -> bool:
        """Whether nothing would ever be in flight if this one had to wait for room (I1)."""
        return self.in_flight_ops == 0 and not request.is_speculative

    def _window_share(self, window: Window, request: Request) -> int:
        """Return how much of the window this request may use, beside what is written."""
        is_urgent = self._is_urgent(request)
        limit = window.urgent_limit if is_urgent else window.limit
        if self.uploads.ops:
            limit = self.uploads.left_of(limit)
        return limit if is_urgent else self._share(request, limit)

    def _is_urgent(self, request: Request) -> bool:
        """Whether it is more urgent than all in flight: it may use the whole of each limit."""
        bases = self.in_flight_bases
        return bases != {} and not request.is_speculative and request.priority.base < min(bases)

    def _share(self, request: Request, limit: int) -> int:
        """Return how much of a limit a request may use that is not urgent."""
        if request.is_speculative:
            return limit // SPECULATIVE_SHARE
        if not (self.in_flight_bases or request.step_bytes):
            return limit
        # A round lasts: one that begins with nothing in flight leaves room for urgent reads, too.
        return limit - limit // URGENT_SHARE

    # -- what the device tells

    def note_urgent(self, request: Request, now: float) -> None:
        """Tell the window who waits for all of it; a store's requests are served side by side."""
        if self.window is None or self.counts_ops:
            return
        base, bases = request.priority.base, self.in_flight_bases
        if not bases or base >= max(bases):
            ahead_base, since_s = self._ahead
            if base >= ahead_base or now - since_s >= LATELY_S:
                return
            self._ahead = NOBODY  # of each that is told once
        self._urgent_base = min(base, self._urgent_base) if self.has_urgent(now) else base
        self._urgent_s = now
        self.window.note_urgent(now)

    def has_urgent(self, now: float) -> bool:
        """Whether such a read came lately."""
        return now - self._urgent_s < LATELY_S

    def note_ahead(self, base: int, now: float) -> None:
        """Note that the page cache answered a read for which the kernel reads ahead.

        What it reads is in flight, too, though nobody says so: an urgent read that comes soon waits for it.
        """
        before_base, since_s = self._ahead
        if before_base <= base or now - since_s >= LATELY_S:
            self._ahead = base, now

    def observe(self, ops: int, nbytes: int, latency_s: float, now: float) -> None:
        """Tell the window of ops that the device performed, before they are taken away."""
        if self.window is not None and ops:
            self.window.observe(
                now=now,
                units=ops if self.counts_ops else nbytes,
                latency_s=latency_s,
                in_flight=self.in_flight_ops + self.uploads.ops if self.counts_ops else self.in_flight_bytes,
                is_limited=self.is_held_back,
                ops=ops,
            )

    def note_throttled(self, now: float, *, is_late: bool = False) -> None:
        """Note that the store asks for less: its window shrinks, once per round trip."""
        if self.window is not None:
            self.window.note_throttled(now)
        if is_late and self.link is not None:
            self.link.note_late(self.in_flight_ops)

    # -- derived numbers

    def validate(self, name: object) -> None:
        """Raise AssertionError where more is in flight than may be, or of other priorities."""
        if (
            self.in_flight_ops > self.max_in_flight_ops
            or sum(self.in_flight_bases.values()) != self.in_flight_ops
        ):
            msg = f"{name}: {self.in_flight_ops} ops in flight, limit {self.max_in_flight_ops}"
            raise AssertionError(msg)
