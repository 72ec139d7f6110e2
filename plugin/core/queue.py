"""The priority queue: which request is next (I4).

Three levels, each a heap, so that every operation is O(log n):

1. *Bases.* One level for each base priority. Its key is ``base * ageing_s + since``, where `since` is
   when it became backlogged or was last served: strict order between busy levels, except that a level
   left alone for `ageing_s` seconds gains one step. Nothing starves, and nothing is ever re-sorted,
   because the key of a level changes only when the level is served.
2. *Scans.* Inside a base, scans take turns by the bytes they were served (start-time fair queueing,
   Goyal, Vin and Cheng, SIGCOMM 1996): the scan with the least virtual start goes next, ties in order of
   arrival.
3. *Requests.* Inside a scan, `(age, position, sequence)`: earlier files and offsets first, FIFO among
   equals. The age is in steps of `ageing_s` since the scan became backlogged: what came in one is not
   overtaken by what comes in the next, or an early file that is read all the time would keep out the others.

A request stays at the head until its last op was admitted, or those of its round, and is let go of then: a
row would keep its buffer alive. Removal of any other is lazy: a request which is no longer `is_waiting` is
dropped when it surfaces, and a queue more than half dead is swept, in place and with every turn and every
wait kept, so that a million cancelled reads leave no memory behind and nobody waits longer for it.

Threading: all methods under the hub's lock. Time is an argument.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from headrace.types import Priority

AGEING_S = 5.0
"""Seconds of waiting which are worth one step of base priority."""


class Queueable(Protocol):
    """What the queue wants to know of a request."""

    seq: int
    priority: Priority
    scan: Hashable
    queue_ticket: int
    queued_s: float | None

    @property
    def is_waiting(self) -> bool:
        """Whether ops of it may be admitted now."""


R = TypeVar("R", bound="Queueable")

Row = tuple[int, int, int, int, R]
"""Of a request: age, position, sequence, ticket, and itself."""


class _Scan(Generic[R]):
    """Requests of one scan, and since when any wait."""

    __slots__ = ("rows", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.rows: list[Row[R]] = []

    def push(self, request: R, now: float) -> None:
        if request.queued_s is None:
            request.queued_s = now
        age = int((request.queued_s - self.since_s) // AGEING_S)
        row = (age, request.priority.position, request.seq, request.queue_ticket, request)
        heapq.heappush(self.rows, row)

    def head(self) -> R | None:
        rows = self.rows
        while rows and not _is_live(rows[0]):
            heapq.heappop(rows)
        return rows[0][-1] if rows else None

    def sweep(self) -> int:
        self.rows[:] = filter(_is_live, self.rows)
        heapq.heapify(self.rows)
        return len(self.rows)


def _is_live(row: Row[R]) -> bool:
    """Whether a heap row still speaks for its request (it may have left, or been pushed anew)."""
    *_, ticket, request = row
    return request.is_waiting and request.queue_ticket == ticket


class _Level(Generic[R]):
    """Requests of one base priority, by scan."""

    def __init__(self, base: int, since: float) -> None:
        self.base = base
        self.since(since)
        self.virtual = 0
        self.turns: list[tuple[int, int, Hashable]] = []
        self.scans: dict[Hashable, _Scan[R]] = {}

    def since(self, now: float) -> None:
        self.key = self.base * AGEING_S + now

    def push(self, request: R, now: float) -> None:
        scan = self.scans.get(request.scan)
        if scan is None:
            scan = self.scans[request.scan] = _Scan(now)
            heapq.heappush(self.turns, (self.virtual, request.seq, request.scan))
        elif scan.head() is None:
            scan.since_s = now
        scan.push(request, now)

    def head(self) -> R | None:
        while self.turns:
            start, _, name = self.turns[0]
            head = self.scans[name].head()
            if head is not None:
                return head
            # A scan that comes back at once shall not overtake those which were served as much.
            self.virtual = max(self.virtual, start)
            del self.scans[name]
            heapq.heappop(self.turns)
        return None

    def served(self, units: int, now: float) -> None:
        start, order, name = self.turns[0]
        self.virtual = start
        heapq.heapreplace(self.turns, (start + units, order, name))
        self.since(now)
        self.scans[name].head()  # what was served is let go of

    def sweep(self) -> int:
        """Drop every dead row; returns how many are left."""
        left = {name: scan.sweep() for name, scan in self.scans.items()}
        self.scans = {name: scan for name, scan in self.scans.items() if left[name]}
        self.turns = [turn for turn in self.turns if turn[2] in self.scans]
        heapq.heapify(self.turns)
        return sum(left.values())


class PriorityQueue(Generic[R]):
    """Requests with ops still to be admitted, the next one first."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level[R]] = {}
        self._keys: list[tuple[float, int]] = []
        self._rows = 0
        self._ticket = 0

    def push(self, request: R, now: float) -> None:
        """Add a request, or add it again after its priority changed."""
        level = self._levels.get(request.priority.base)
        # Asked while the row of a request that moves still speaks for it.
        is_idle = level is None or level.head() is None
        self._ticket += 1
        request.queue_ticket = self._ticket
        if level is None:
            level = self._levels[request.priority.base] = _Level(request.priority.base, now)
            heapq.heappush(self._keys, (level.key, level.base))
        elif is_idle:
            # It was idle, and time spent idle is no waiting: it must not count as age.
            level.since(now)
            heapq.heappush(self._keys, (level.key, level.base))
        level.push(request, now)
        self._rows += 1

    def head(self) -> R | None:
        """Return the request to be served next, and leave it where it is."""
        while self._keys:
            key, base = self._keys[0]
            level = self._levels.get(base)
            if level is not None and level.key == key:
                request = level.head()
                if request is not None:
                    return request
                del self._levels[base]
            heapq.heappop(self._keys)
        self._rows = 0
        return None

    def head_key(self) -> float:
        """Return how urgent the head is, its age included: lower first; infinite without one."""
        return math.inf if self.head() is None else self._keys[0][0]

    def is_ahead(self, base: int, now: float) -> bool:
        """Whether a request of this base would be the head if it came now, where none of its base waits."""
        return base * AGEING_S + now < self.head_key()

    def served(self, request: R, units: int, now: float) -> None:
        """Note that the head was granted `units`, in bytes: its scan's turn is over."""
        level = self._levels[request.priority.base]
        level.served(units, now)
        heapq.heappush(self._keys, (level.key, level.base))

    def sweep(self, live: int) -> None:
        """Forget dead rows once they outnumber the `live` requests, or nothing else is left."""
        if live and self._rows <= 2 * live + 64:
            return
        left = {base: level.sweep() for base, level in self._levels.items()}
        self._levels = {base: level for base, level in self._levels.items() if left[base]}
        self._keys = [(level.key, base) for base, level in self._levels.items()]
        heapq.heapify(self._keys)
        self._rows = sum(left.values())

    def rebuild(self, requests: list[R], now: float) -> None:
        """Start again from the requests themselves."""
        self.__init__()  # type: ignore[misc]
        for request in requests:
            if request.is_waiting:
                self.push(request, now)

    def __iter__(self) -> Iterator[R]:
        for level in self._levels.values():
            for scan in level.scans.values():
                yield from (row[-1] for row in scan.rows if _is_live(row))
