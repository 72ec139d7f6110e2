"""Keys in an order of their own, the first of them at once.

A heap with lazy deletion: a row that no longer speaks for its key is dropped when it surfaces, and a heap of
which more than half is dead is made anew, so that what left keeps no memory.

Threading: all methods under the hub's lock. No clock, no I/O.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")


class Ranking(Generic[K]):
    """Keys, each with what it is ordered by; `rank`, `forget` and `first` are O(log n)."""

    def __init__(self) -> None:
        self._orders: dict[K, tuple[Any, int]] = {}
        self._heap: list[tuple[Any, int, K]] = []
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._orders)

    def rank(self, key: K, order: Any) -> None:
        """Give a key its place, or another; ties go to the one that was ranked first."""
        self._ticket += 1
        heapq.heappush(self._heap, (order, self._ticket, key))
        self._orders[key] = order, self._ticket

    def forget(self, key: K) -> None:
        """Take a key out, if it is there."""
        self._orders.pop(key, None)
        if len(self._heap) > 2 * len(self._orders) + 64:
            self._heap = [(order, ticket, key) for key, (order, ticket) in self._orders.items()]
            heapq.heapify(self._heap)

    def first(self) -> K | None:
        """Return the key of least order."""
        while self._heap:
            _, ticket, key = self._heap[0]
            entry = self._orders.get(key)
            if entry is not None and entry[1] == ticket:
                return key
            heapq.heappop(self._heap)
        return None

    def clear(self) -> None:
        """Forget all."""
        self._orders.clear()
        self._heap.clear()
