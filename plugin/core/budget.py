"""The byte budget: how much result memory requests may hold before their consumers took it.

A reservation is an entry `request -> (bytes, priority)`; the total and the least priority are derived
from the entries, so that `recount` can restore them whatever line an exception arrived at (I3).

* `hold`, `release` and the least priority among holders (I6) are O(log n); demand and speculation are ranked
  apart, as demand passes as if there were no speculation (I7).
* Which groups hold something is counted: asking for a sibling does not walk over all holders.
* The exemptions of I2 are not here: they are named predicates of `core.admission`.

Threading: all methods under the hub's lock. No clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headrace.core.ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from headrace.types import Priority


class ByteBudget:
    """Bytes reserved by requests of this process.

    Parameters
    ----------
    limit_bytes
        0 is no limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        self.peak_bytes = 0
        self.is_awaited = False
        """Whether a head waited for it when the schedulers were last looked at."""
        self._holds: dict[Hashable, tuple[int, Priority, Hashable, Ranking[Hashable]]] = {}
        self._groups: dict[Hashable, int] = {}
        self._demand: Ranking[Hashable] = Ranking()
        self._speculation: Ranking[Hashable] = Ranking()

    def __len__(self) -> int:
        return len(self._holds)

    def is_holding(self, key: Hashable) -> bool:
        """Whether `key` has a reservation."""
        return key in self._holds

    def fits(self, nbytes: int) -> bool:
        """Whether `nbytes` more stay inside the limit, or nothing is reserved at all."""
        if not self.limit_bytes or not self._holds:
            return True
        return self.reserved_bytes + nbytes <= self.limit_bytes

    def is_group_holding(self, group: Hashable) -> bool:
        """Whether a member of `group` has a reservation."""
        return group in self._groups

    def hold(
        self,
        key: Hashable,
        nbytes: int,
        priority: Priority,
        group: Hashable = None,
        *,
        is_speculative: bool = False,
    ) -> None:
        """Reserve; a second reservation of one key is a mistake of the caller."""
        if key in self._holds:
            msg = f"{key!r} holds a reservation already"
            raise ValueError(msg)
        ranking = self._speculation if is_speculative else self._demand
        ranking.rank(key, priority)
        self._holds[key] = (nbytes, priority, group, ranking)
        if group is not None:
            self._groups[group] = self._groups.get(group, 0) + 1
        self.reserved_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)

    def reprioritise(self, key: Hashable, priority: Priority) -> None:
        """Note that the holder is demand of this priority now; nothing where it holds nothing."""
        if key in self._holds:
            nbytes, _, group, ranking = self._holds[key]
            ranking.forget(key)
            self._demand.rank(key, priority)
            self._holds[key] = (nbytes, priority, group, self._demand)

    def shrink(self, key: Hashable, nbytes: int) -> None:
        """Note that the holder needs no more than so much; nothing where it holds no more."""
        held, *rest = self._holds.get(key, (0, None, None, self._demand))
        if nbytes < held:
            self._holds[key] = (nbytes, *rest)
            self.reserved_bytes -= held - nbytes

    def release(self, key: Hashable) -> int:
        """Give a reservation back; 0 where there is none, so that releasing twice is harmless."""
        nbytes, _, group, ranking = self._holds.pop(key, (0, None, None, self._demand))
        self.reserved_bytes -= nbytes
        if group is not None:
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]
        ranking.forget(key)
        return nbytes

    def least_priority(self) -> Priority | None:
        """Return the most urgent priority that holds a reservation (I6)."""
        found = [key for ranking in (self._demand, self._speculation) if (key := ranking.first()) is not None]
        return min((self._holds[key][1] for key in found), default=None)

    def least_of_demand(self) -> Priority | None:
        """Return the most urgent priority of demand that holds a reservation."""
        key = self._demand.first()
        return None if key is None else self._holds[key][1]

    def keep_only(self, live: Mapping[int, bool]) -> None:
        """Forget reservations of requests that are gone, and derive everything again.

        Of those that are not it is said whether they are speculative.
        """
        rankings = {False: self._demand, True: self._speculation}
        # In one step: they are the facts, and what follows may be cut as well.
        self._holds = {
            key: (nbytes, priority, group, rankings[live[key]])  # type: ignore[index]
            for key, (nbytes, priority, group, _) in self._holds.items()
            if key in live
        }
        self.reserved_bytes = sum(nbytes for nbytes, *_ in self._holds.values())
        self._groups = self._count_groups()
        for ranking in rankings.values():
            ranking.clear()
        for key, (_, priority, _, ranking) in self._holds.items():
            ranking.rank(key, priority)

    def _count_groups(self) -> dict[Hashable, int]:
        return dict(Counter(group for _, _, group, _ in self._holds.values() if group is not None))

    def validate(self) -> None:
        """Raise AssertionError where the derived numbers disagree with the entries."""
        total = sum(nbytes for nbytes, _, _, _ in self._holds.values())
        if self._groups != self._count_groups():
            msg = f"budget: groups {self._groups}, entries say {self._count_groups()}"
            raise AssertionError(msg)
        if total != self.reserved_bytes or total < 0:
            msg = f"budget: reserved {self.reserved_bytes} bytes, entries say {total}"
            raise AssertionError(msg)
